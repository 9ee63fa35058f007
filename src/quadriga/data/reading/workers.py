"""Reading micro-batches, in this process or in workers, and what becomes of unreadable samples.

How a process that reads data lives and dies: with its parent, not with a signal to all.

A scheduler signals every process of a job. The training process then finishes its step and saves;
a worker that died of the same signal would take the step with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import util
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NamedTuple, Self, final

import numpy as np
import numpy.typing as npt
from torch.utils import data as torch_data

from quadriga.contracts import Batch, Dataset, Sample, Transform, UnreadableSample, stack
from quadriga.errors import UserError
from quadriga.randomness import Stream, fold, fold_numpy, generator

_SECONDS = 1.0


def outlive_signals(worker: int) -> None:
    """Ignore SIGTERM and SIGUSR1 from here on, and end when the parent has ended.

    Args:
        worker: Number of the worker; not used.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    # An orphan that waits for requests ends by itself; one that is stuck in a read does not.
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os._exit(1)


def kill_workers(workers: Sequence[BaseProcess]) -> None:
    """End the workers that still run, whatever they do; SIGTERM does not end them."""
    for worker in workers:
        # Of another process: a fork of the parent inherits the list, not the children.
        with contextlib.suppress(AssertionError, ValueError):
            if worker.is_alive():
                worker.kill()


_ATTEMPTS = 16


class Request(NamedTuple):
    """The samples of one micro-batch."""

    indices: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    task: str = ""
    """Whose data set and transform they are of; empty outside a mixture."""


class Reply(NamedTuple):
    """One micro-batch on the CPU, and what went wrong with it.

    Problems are told, not raised: an exception that crosses from a worker process becomes a page
    of traceback.
    """

    batch: Batch
    unreadable: list[tuple[int, str]]
    """Index of each sample that could not be read, and why."""
    failure: str
    """The sentence of the error that ends the run; empty without one."""


@final
class BatchReader(torch_data.Dataset[Reply]):
    """From a request to a stacked micro-batch; runs in the workers."""

    def __init__(self, dataset: Dataset, transform: Transform, replace: bool) -> None:
        """Read `dataset` through `transform`.

        Args:
            dataset: Where records come from.
            transform: How they become samples.
            replace: Put another sample in an unreadable one's place; else leave it out.
        """
        self._dataset = dataset
        self._transform = transform
        self._replace = replace

    def __getitem__(self, request: Request) -> Reply:
        """Read and stack the samples of `request`."""
        unreadable: list[tuple[int, str]] = []
        try:
            batch = self._read(request, unreadable)
        except UserError as error:
            return Reply({}, unreadable, str(error))
        return Reply(batch, unreadable, "")

    def _read(self, request: Request, unreadable: list[tuple[int, str]]) -> Batch:
        read = _OfTask(
            self._dataset.of_task(request.task), self._transform.of_task(request.task), unreadable
        )
        indices = request.indices.copy()
        samples: list[Sample] = []
        kept: list[int] = []
        for place, key in enumerate(request.keys.tolist()):
            sample = read.sample(int(indices[place]), key)
            if sample is None and self._replace:
                indices[place], sample = read.replacement(key)
            if sample is not None:
                samples.append(sample)
                kept.append(place)
        return stack(samples, indices[kept], request.keys[kept])


class _OfTask(NamedTuple):
    """The data set and the transform of a request."""

    dataset: Dataset
    transform: Transform
    unreadable: list[tuple[int, str]]

    def sample(self, index: int, key: int) -> Sample | None:
        """Return a sample, or None, with the reason noted."""
        try:
            return self.transform.sample(self.dataset.read(index), key)
        except UnreadableSample as error:
            self.unreadable.append((index, str(error)))
            return None

    def replacement(self, key: int) -> tuple[int, Sample]:
        """Draw another sample from the place's own key, until one can be read.

        Raises:
            UserError: None of several can.
        """
        for attempt in range(_ATTEMPTS):
            index = Stream(fold(key, "replacement", attempt)).integer(len(self.dataset))
            sample = self.sample(index, key)
            if sample is not None:
                return index, sample
        raise UserError(
            f"the data must be readable, but none of {_ATTEMPTS + 1} samples in a row is; "
            f"the last: {self.unreadable[-1][1]}"
        )


@final
class _Requests:
    """What the workers are to read next; the sampler of a DataLoader that is used many times."""

    def __init__(self) -> None:
        self.pending: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.pending)


@final
class ReaderPool:
    """Reads requests in order: in this process, or ahead of time in worker processes."""

    def __init__(self, reader: BatchReader, workers: int, prefetch: int, pin: bool) -> None:
        """Start nothing yet; the workers start with the first `replies`.

        Args:
            reader: What reads a request.
            workers: Number of worker processes; 0 reads in this process.
            prefetch: Micro-batches that each worker reads ahead.
            pin: Put batches into page-locked memory.
        """
        self._reader = reader
        self._pin = pin
        self._requests = _Requests()
        self._loader: torch_data.DataLoader[Reply] | None = None
        self._workers = workers
        self._at_exit: util.Finalize | None = None
        self._prefetch = prefetch

    def replies(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Yield the reply to each request, in order.

        Raises:
            UserError: A worker process died.
        """
        if self._workers == 0:
            for request in requests:
                reply = self._reader[request]
                yield reply._replace(batch=_pinned(reply.batch)) if self._pin else reply
            return
        self._requests.pending = requests
        iterator = self._start()
        while True:
            try:
                reply = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                raise _readable_death(error) from error
            yield reply

    def _start(self) -> Iterator[Reply]:
        with warnings.catch_warnings():
            # The number of workers is the user's choice, and forking beside torch's threads is
            # what torch does by default: the workers do nothing that needs those threads.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            if self._loader is None:
                self._loader = torch_data.DataLoader(
                    self._reader,
                    batch_size=None,
                    sampler=self._requests,
                    num_workers=self._workers,
                    prefetch_factor=self._prefetch,
                    persistent_workers=True,
                    pin_memory=self._pin,
                    collate_fn=_unchanged,
                    worker_init_fn=outlive_signals,
                    # Its own generator, or the loader would draw from the process's global one.
                    generator=generator("data workers"),
                )
            with _signals_of_children_as_they_were():
                iterator = iter(self._loader)
        if self._at_exit is None:
            # Where the pool is never closed: what multiprocessing does at the process's end is to
            # terminate the workers, which do not heed it, and to wait for them for ever.
            workers = getattr(iterator, "_workers", [])
            self._at_exit = util.Finalize(None, kill_workers, args=(workers,), exitpriority=100)
        return iterator

    def close(self) -> None:
        """End the worker processes."""
        iterator = getattr(self._loader, "_iterator", None)
        self._loader = None
        workers = getattr(iterator, "_workers", [])
        if iterator is not None:
            # Waiting for the iterator to be collected would leave the processes running as long
            # as a caught exception refers to it.
            iterator._shutdown_workers()
        if self._at_exit is not None:
            self._at_exit.cancel()
            self._at_exit = None
        kill_workers(workers)  # those that are stuck: they do not heed what it sends

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def evaluation_keys(index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the keys of samples outside training, the same in every run.

    Args:
        index: int64 (samples,).
    """
    return fold_numpy(fold(0, "evaluate"), index)


@contextlib.contextmanager
def _signals_of_children_as_they_were() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD: it raises a dead worker's error wherever the process is.

    That may be in the middle of a step, or while another error ends the run. Without it the error
    comes when the worker's batch is asked for.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if is_main and signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)


def _unchanged(reply: Any) -> Any:
    return reply


def _pinned(batch: Batch) -> Batch:
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def _readable_death(error: Exception) -> Exception:
    text = str(error)
    if isinstance(error, ConnectionError | EOFError):
        # It died between announcing a batch and handing over its memory.
        text = f"its connection broke ({error})"
    elif not re.search(r"DataLoader worker \(pid.*(killed|exited)", text):
        return error
    reason = re.sub(r"\s+", " ", text).strip().rstrip(".")
    return UserError(
        f"a process that reads data died: {reason}; give it more memory (or more /dev/shm), lower "
        f"loader.workers, or set loader.workers=0 to see the error itself"
    )
