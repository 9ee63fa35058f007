"""The loader: this rank's micro-batches, in order and on its device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, final

import numpy as np
import numpy.typing as npt
import torch

from quadriga.contracts import Batch, Dataset, MicroBatch, Share, Transform
from quadriga.data.reading.sampling import deal, step_samples
from quadriga.data.reading.workers import BatchReader, ReaderPool, Reply, Request, evaluation_keys
from quadriga.distributed.environment import DistEnv
from quadriga.errors import UserError

Warn = Callable[[str], None]

OnRead = Callable[[int, range, Batch], None]
"""Told each micro-batch as it was read: its step, its places in the step's batch, and itself."""

_PATIENCE = 20
"""So many unreadable samples are awaited before their share is judged, within the first epoch."""


@final
class Loader:
    """Micro-batches of training, a pure function of the seed and the step numbers.

    World size, number of workers and accumulation decide who reads a sample, never which samples
    a step has, nor how they look. Close it, or use it as a context manager, to end its workers.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        *,
        seed: int,
        batch_size: int,
        accumulate: int,
        repeats: int = 1,
        share: Share,
        device: torch.device,
        workers: int,
        prefetch: int,
        max_unreadable_fraction: float,
        warn: Warn | None = None,
        on_read: OnRead | None = None,
    ) -> None:
        """Check the arithmetic; nothing is read and no process is started yet.

        Args:
            dataset: Where records come from.
            transform: How they become batches.
            seed: The run's seed.
            batch_size: Samples of one optimizer step over all ranks.
            accumulate: Micro-batches per rank and step.
            repeats: Views of each sample within one step, as in `step_samples`.
            share: Which of a step's samples are read.
            device: Where the batches are to lie.
            workers: Number of worker processes; 0 reads in this process.
            prefetch: Micro-batches that each worker reads ahead.
            max_unreadable_fraction: Above this share of unreadable samples the run stops.
            warn: Told one line per unreadable sample; the logger "quadriga" by default.
            on_read: Told each micro-batch, still on the CPU.

        Raises:
            UserError: The batch has fewer samples than there are micro-batches.
        """
        self._parts = deal(batch_size, share.of, accumulate)[share.rank]
        self._dataset_size = len(dataset)
        self._transform = transform
        self._seed = seed
        self._batch_size = batch_size
        self._repeats = repeats
        self._device = device
        self._micro_batches_read = 0
        self._on_read = on_read
        reader = BatchReader(dataset, transform, replace=True)
        self._pool = ReaderPool(reader, workers, prefetch, pin=device.type == "cuda")
        self._tally = _Tally(len(dataset), max_unreadable_fraction, _logger_or(warn))

    @property
    def unreadable(self) -> int:
        """Number of different samples that this rank could not read."""
        return self._tally.unreadable

    def batches(self, steps: range) -> Iterator[MicroBatch]:
        """Yield the micro-batches of consecutive steps, `accumulate` for each.

        ``index`` tells what is really there: the replacements' indices where samples were
        replaced. ``key`` stays that of the sample whose place it is.

        Args:
            steps: Consecutive step numbers.

        Raises:
            UserError: Too many samples are unreadable, or a worker died.
        """
        return on_device(self._read(steps), self._transform, self._device)

    def _read(self, steps: range) -> Iterator[Batch]:
        for count, reply in enumerate(self._pool.replies(self._requests(steps))):
            self._micro_batches_read += 1
            samples = self._micro_batches_read // len(self._parts) * self._batch_size
            self._tally.add(reply, epoch_done=samples >= self._dataset_size)
            if self._on_read is not None:
                step, micro = divmod(count, len(self._parts))
                self._on_read(steps.start + step, self._parts[micro], reply.batch)
            yield reply.batch

    def _requests(self, steps: range) -> Iterator[Request]:
        for step in steps:
            index, key = step_samples(
                self._seed, self._dataset_size, self._batch_size, step, self._repeats
            )
            for part in self._parts:
                place = slice(part.start, part.stop)
                yield Request(index[place], key[place])

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
) -> Iterator[Batch]:
    """Yield every sample of `indices` once, in order: for evaluation.

    Unreadable samples are left out with a warning, so that none counts twice.

    Args:
        dataset: Where records come from.
        transform: How they become batches.
        indices: Which samples; a rank that evaluates a share passes its share.
        batch_size: Samples per batch; the last may have fewer.
        env: This process; the batches are on its device.
        workers: Number of worker processes; 0 reads in this process.
        warn: Told one line per unreadable sample; the logger "quadriga" by default.

    Raises:
        UserError: None of the samples can be read, or a worker died.
    """
    index = np.asarray(indices, np.int64)
    key = evaluation_keys(index)
    cuts = [slice(start, start + batch_size) for start in range(0, len(index), batch_size)]
    requests = [Request(index[cut], key[cut]) for cut in cuts]
    reader = BatchReader(dataset, transform, replace=False)
    tell = _logger_or(warn)

    def readable(pool: ReaderPool) -> Iterator[Batch]:
        """Yield the batches without their unreadable samples, and count what is left."""
        found, reasons = 0, [""]
        for reply in pool.replies(requests):
            if reply.failure:
                raise UserError(reply.failure)
            for _, reason in reply.unreadable:
                tell(f"unreadable sample left out: {reason}")
                reasons.append(reason)
            found += len(reply.batch["index"])
            if len(reply.batch["index"]):
                yield reply.batch
        if len(index) and not found:
            raise UserError(
                f"the data must be readable, but none of {len(index)} samples is; "
                f"the last: {reasons[-1]}"
            )

    with ReaderPool(reader, workers, prefetch=2, pin=env.device.type == "cuda") as pool:
        yield from on_device(readable(pool), transform, env.device)


def on_device(
    batches: Iterator[Batch], transform: Transform, device: torch.device
) -> Iterator[MicroBatch]:
    """Move batches to the device and do the batched part of the transform there.

    On a GPU the next batch is copied and transformed on a stream of its own while the current
    one is worked on.

    Args:
        batches: On the CPU, in page-locked memory if `device` is a GPU.
        transform: Its `batch` is applied.
        device: Where the batches go.
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
            # The memory belongs to the side stream: it may be used anew only when this stream
            # is done with it.
            tensor.record_stream(stream)
        yield current[0]


def _made(batch: Batch, transform: Transform, device: torch.device) -> MicroBatch:
    """Return a batch on the device; what was read is kept, to make it once more."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return MicroBatch(transform.batch(moved), lambda: _made(batch, transform, device))


def _copied(
    batches: Iterator[Batch], transform: Transform, device: torch.device, side: torch.cuda.Stream
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
    """Counts the unreadable samples, names each once and stops the run when there are too many."""

    def __init__(self, dataset_size: int, max_fraction: float, warn: Warn) -> None:
        self._seen = np.zeros(dataset_size, bool)
        self._bad = np.zeros(dataset_size, bool)
        self._max_fraction = max_fraction
        self._warn = warn

    @property
    def unreadable(self) -> int:
        return int(np.count_nonzero(self._bad))

    def add(self, reply: Reply, epoch_done: bool) -> None:
        """Take note of one reply.

        Raises:
            UserError: The reply is a failure, or the share of unreadable samples is too large.
        """
        for index, reason in reply.unreadable:
            if not self._bad[index]:
                self._warn(f"unreadable sample replaced by another: {reason}")
            self._bad[index] = self._seen[index] = True
        if reply.failure:
            raise UserError(reply.failure)
        self._seen[reply.batch["index"].numpy()] = True
        if not reply.unreadable and not epoch_done:
            return
        bad, seen = self.unreadable, int(np.count_nonzero(self._seen))
        judged = epoch_done or bad >= _PATIENCE or self._max_fraction == 0
        if judged and bad > self._max_fraction * seen:
            raise UserError(
                f"loader.max_unreadable_fraction is {self._max_fraction:g}, but {bad} of {seen} "
                f"samples ({bad / seen:.1%}) are unreadable; mend them or raise it"
            )


def _logger_or(warn: Warn | None) -> Warn:
    return logging.getLogger("quadriga").warning if warn is None else warn
