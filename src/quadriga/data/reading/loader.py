"""The loader: yields this rank's micro-batches in order, on its device."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, Self, final

import numpy as np
import numpy.typing as npt
import torch

from quadriga.contracts import Batch, Dataset, MicroBatch, Share, Transform
from quadriga.data.reading.stream import Part, SampleStream
from quadriga.data.reading.workers import BatchReader, ReaderPool, Reply, Request, evaluation_keys
from quadriga.distributed.environment import DistEnv
from quadriga.errors import UserError

Warn = Callable[[str], None]

OnRead = Callable[[int, Part, Batch], None]
"""Called with each micro-batch when it is read: its step, the requested part, and the batch."""

_PATIENCE = 20
"""Within the first epoch, the number of unreadable samples from which their fraction is checked."""


@final
class Loader:
    """Micro-batches of training, a pure function of the seed and the step numbers.

    World size, number of workers and accumulation decide which process reads a sample; they change
    neither the samples of a step nor their augmentation. Close the loader, or use it as a context
    manager, to end its workers.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        stream: SampleStream,
        *,
        share: Share,
        device: torch.device,
        workers: int,
        prefetch: int,
        max_unreadable_fraction: float,
        warn: Warn | None = None,
        on_read: OnRead | None = None,
    ) -> None:
        """Prepare the loader; nothing is read and no process is started yet.

        Args:
            dataset: The records.
            transform: Turns records into batches.
            stream: The samples of each step, and the ranks that read them.
            share: The part of a step's samples that this rank reads.
            device: Device of the batches.
            workers: Number of worker processes; 0 reads in this process.
            prefetch: Micro-batches that each worker reads ahead.
            max_unreadable_fraction: Above this fraction of unreadable samples the run stops.
            warn: Called with one line per unreadable sample; the logger "quadriga" by default.
            on_read: Called with each micro-batch, still on the CPU.
        """
        self._transform, self._stream = transform, stream
        self._reader, self._device = share.rank, device
        self._on_read = on_read
        reader = BatchReader(dataset, transform, replace=True)
        self._pool = ReaderPool(reader, workers, prefetch, pin=device.type == "cuda")
        self._tallies = {
            task: _Tally(len(dataset.of_task(task)), share.of, max_unreadable_fraction, warn)
            for task in dataset.tasks or ("",)
        }

    @property
    def unreadable(self) -> int:
        """Number of distinct samples that this rank could not read."""
        return sum(tally.unreadable for tally in self._tallies.values())

    def batches(self, steps: range) -> Iterator[MicroBatch]:
        """Yield the micro-batches of consecutive steps, the same number for each step.

        Where an unreadable sample was replaced, ``index`` is that of the replacement, and ``key``
        that of the original sample.

        Args:
            steps: Consecutive step numbers.

        Raises:
            UserError: Too many samples are unreadable, or a worker died.
        """
        return on_device(self._read(steps), self._transform, self._device)

    def _read(self, steps: range) -> Iterator[_Read]:
        asked: deque[tuple[int, Part]] = deque()
        for reply in self._pool.replies(self._requests(steps, asked)):
            step, part = asked.popleft()
            self._tallies[part.task].add(reply)
            if self._on_read is not None:
                self._on_read(step, part, reply.batch)
            yield _Read(reply.batch, part)

    def _requests(self, steps: range, asked: deque[tuple[int, Part]]) -> Iterator[Request]:
        for step in steps:
            for part in self._stream.own(step, self._reader):
                asked.append((step, part))
                yield Request(part.index, part.key, part.task)

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def sequential(
    dataset: Dataset,
    transform: Transform,
    indices: range | npt.NDArray[np.int64],
    *,
    batch_size: int,
    env: DistEnv,
    workers: int,
    warn: Warn | None = None,
    batches: int = 0,
) -> Iterator[Batch]:
    """Yield every sample of `indices` once, in order: for evaluation.

    Unreadable samples are left out with a warning, so that none counts twice.

    Args:
        dataset: The records.
        transform: Turns records into batches.
        indices: int64 indices of the samples; each rank passes its own part.
        batch_size: Samples per batch; the last may have fewer.
        env: This process; the batches are on its device.
        workers: Number of worker processes; 0 reads in this process.
        warn: Called with one line per unreadable sample; the logger "quadriga" by default.
        batches: Minimum number of batches, reached by empty ones: all ranks yield as many.

    Raises:
        UserError: None of the samples can be read, or a worker died.
    """
    index = np.asarray(indices, np.int64)
    key = evaluation_keys(index)
    cuts = [slice(start, start + batch_size) for start in range(0, len(index), batch_size)]
    requests = [Request(index[cut], key[cut]) for cut in cuts]
    reader = BatchReader(dataset, transform, replace=False)
    tell = _logger_or(warn)

    def readable(pool: ReaderPool) -> Iterator[_Read]:
        """Yield the batches without their unreadable samples; fail if no sample is readable."""
        found, reasons = 0, [""]
        for reply in pool.replies(requests):
            if reply.failure:
                raise UserError(reply.failure)
            for _, reason in reply.unreadable:
                tell(f"unreadable sample left out: {reason}")
                reasons.append(reason)
            found += len(reply.batch["index"])
            if len(reply.batch["index"]):
                yield _Read(reply.batch)
        if len(index) and not found:
            raise UserError(
                f"the data must be readable, but none of {len(index)} samples is; "
                f"the last: {reasons[-1]}"
            )

    with ReaderPool(reader, workers, prefetch=2, pin=env.device.type == "cuda") as pool:
        yielded = 0
        for batch in on_device(readable(pool), transform, env.device):
            yielded += 1
            yield batch
    for _ in range(yielded, batches):
        yield MicroBatch(transform.example(0, env.device))


class _Read(NamedTuple):
    """A micro-batch on the CPU, and the part that was requested."""

    batch: Batch
    part: Part | None = None


def on_device(
    batches: Iterator[_Read], transform: Transform, device: torch.device
) -> Iterator[MicroBatch]:
    """Move batches to the device and apply the batched part of the transform there.

    On a GPU the next batch is copied and transformed on a separate stream while the current one
    is used.

    Args:
        batches: Batches on the CPU, in page-locked memory if `device` is a GPU.
        transform: The transform whose `batch` is applied.
        device: Device of the yielded batches.
    """
    if device.type != "cuda":
        for batch in batches:
            yield _made(batch, transform, device)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    following = _copied(batches, transform, device, side)
    while following is not None:
        current = following
        following = _copied(batches, transform, device, side)
        stream = torch.cuda.current_stream(device)
        stream.wait_event(current[1])
        for tensor in current[0].values():
            # The memory belongs to the side stream: it must not be reused before this stream
            # has finished with it.
            tensor.record_stream(stream)
        yield current[0]


def _made(read: _Read, transform: Transform, device: torch.device) -> MicroBatch:
    """Return a batch on the device; it keeps the CPU batch, so that it can be made again."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in read.batch.items()}

    def again() -> MicroBatch:
        return _made(read, transform, device)

    if (part := read.part) is None:
        return MicroBatch(transform.batch(moved), again)
    empty = functools.partial(_empty, transform, device)
    return MicroBatch(
        transform.of_task(part.task).batch(moved),
        again,
        part.task,
        part.share,
        {task: functools.partial(empty, task) for task in part.others},
    )


def _empty(transform: Transform, device: torch.device, task: str) -> MicroBatch:
    return MicroBatch(transform.of_task(task).example(0, device), task=task)


def _copied(
    batches: Iterator[_Read], transform: Transform, device: torch.device, side: torch.cuda.Stream
) -> tuple[MicroBatch, torch.cuda.Event] | None:
    batch = next(batches, None)
    if batch is None:
        return None
    with torch.cuda.stream(side):
        ready = _made(batch, transform, device)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(side)
    return ready, event


class _Tally:
    """Counts unreadable samples, warns once of each and stops the run if there are too many."""

    def __init__(
        self, dataset_size: int, world_size: int, max_fraction: float, warn: Warn | None
    ) -> None:
        self._seen = np.zeros(dataset_size, bool)
        self._bad = np.zeros(dataset_size, bool)
        self._world_size, self._max_fraction = world_size, max_fraction
        self._warn = _logger_or(warn)
        self._read = 0

    @property
    def unreadable(self) -> int:
        return int(np.count_nonzero(self._bad))

    def add(self, reply: Reply) -> None:
        """Count one reply; the other ranks are assumed to have read as many samples.

        Raises:
            UserError: The reply is a failure, or the fraction of unreadable samples is too large.
        """
        for index, reason in reply.unreadable:
            if not self._bad[index]:
                self._warn(f"unreadable sample replaced by another: {reason}")
            self._bad[index] = self._seen[index] = True
        if reply.failure:
            raise UserError(reply.failure)
        self._seen[reply.batch["index"].numpy()] = True
        self._read += len(reply.batch["index"])
        epoch_done = self._read * self._world_size >= len(self._seen)
        if not reply.unreadable and not epoch_done:
            return
        bad, seen = self.unreadable, int(np.count_nonzero(self._seen))
        is_enough = epoch_done or bad >= _PATIENCE or self._max_fraction == 0
        if is_enough and bad > self._max_fraction * seen:
            raise UserError(
                f"loader.max_unreadable_fraction is {self._max_fraction:g}, but {bad} of {seen} "
                f"samples ({bad / seen:.1%}) are unreadable; mend them or raise it"
            )


def _logger_or(warn: Warn | None) -> Warn:
    return logging.getLogger("quadriga").warning if warn is None else warn
