"""Reads micro-batches in this process or in workers, and replaces or drops unreadable samples.

A worker ignores the signals that stop a job, and ends when its parent ends. A scheduler signals
every process of a job; the training process then finishes its step and saves, for which it needs
its workers.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing import util
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NamedTuple, Self, final

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import data as torch_data

from quadriga.contracts import Batch, Dataset, Sample, Transform, UnreadableSample, stack
from quadriga.errors import UserError
from quadriga.randomness import Stream, fold, fold_numpy, generator

_SECONDS = 1.0


def outlive_signals(worker: int) -> None:
    """Ignore the signals that stop a run, and end this process when the parent has ended.

    Args:
        worker: Number of the worker; not used.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    # torch ends an orphan that waits for requests, but not one that is stuck in a read.
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os._exit(1)


def kill_workers(workers: Sequence[BaseProcess]) -> None:
    """Kill the workers that still run; they ignore SIGTERM."""
    for worker in workers:
        # In a fork of the parent, which inherits the list but not the children.
        with contextlib.suppress(AssertionError, ValueError):
            if worker.is_alive():
                worker.kill()


_ATTEMPTS = 16


class Request(NamedTuple):
    """The samples of one micro-batch."""

    indices: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    task: str = ""
    """The task whose data set and transform are used; empty outside a mixture."""


class Reply(NamedTuple):
    """One micro-batch on the CPU, and the problems in reading it.

    Problems are returned, not raised: an exception that crosses from a worker process becomes a
    page of traceback.
    """

    batch: Batch
    unreadable: list[tuple[int, str]]
    """Index of each sample that could not be read, and the reason."""
    failure: str
    """Message of the error that ends the run; empty if there is none."""
    arrays: Mapping[str, npt.NDArray[Any]] = {}
    """The batch instead of `batch`, while it is sent through a pipe."""


@final
class BatchReader(torch_data.Dataset[Reply]):
    """Reads the samples of a request and stacks them to a micro-batch; runs in the workers."""

    def __init__(self, dataset: Dataset, transform: Transform, replace: bool) -> None:
        """Read `dataset` through `transform`.

        Args:
            dataset: The records.
            transform: Turns records into samples.
            replace: Whether to replace an unreadable sample by another; else it is left out.
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
        """Return a sample; if it is unreadable, record the reason and return None."""
        try:
            return self.transform.sample(self.dataset.read(index), key)
        except UnreadableSample as error:
            self.unreadable.append((index, str(error)))
            return None

    def replacement(self, key: int) -> tuple[int, Sample]:
        """Return index and sample of a replacement, drawn from `key` until one is readable.

        Raises:
            UserError: None of several draws is readable.
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
class _Transfer:
    """Sends a worker's batches to the main process: in shared memory, or through its pipe.

    A tensor in shared memory takes part of ``/dev/shm``, which containers limit to 64 MiB, and an
    open file in both processes. A batch that might not fit there is sent as arrays through the
    pipe, which needs neither and costs two copies more.
    """

    def __init__(self, workers: int, prefetch: int) -> None:
        """Look at this process's limit of open files."""
        self._users = workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._only_pipe = most < _OTHER_FILES + workers * (prefetch + 1) * _TENSORS

    def __call__(self, reply: Reply) -> Reply:
        """Return a reply as it is to be sent; called in the workers."""
        size = sum(tensor.nbytes for tensor in reply.batch.values())
        # All workers may look at the same moment, and each finds the same room.
        if not self._only_pipe and shared_memory_free() >= (self._users + 1) * size:
            return reply
        return reply._replace(arrays={n: t.numpy() for n, t in reply.batch.items()}, batch={})


def shared_memory_free() -> int:
    """Return the free bytes of shared memory; 0 if there is none."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 0 if sys.platform == "linux" else sys.maxsize
    return found.f_bavail * found.f_frsize


_TENSORS, _OTHER_FILES = 8, 128
"""Generous estimates: tensors of a batch, and files that a run has open beside them."""


@final
class _Requests:
    """The sampler of a DataLoader that is used many times: yields the pending requests."""

    def __init__(self) -> None:
        self.pending: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.pending)


@final
class ReaderPool:
    """Reads requests in order: in this process, or ahead of time in worker processes."""

    def __init__(self, reader: BatchReader, workers: int, prefetch: int, pin: bool) -> None:
        """Prepare the pool; the workers start with the first call of `replies`.

        Args:
            reader: Reads a request.
            workers: Number of worker processes; 0 reads in this process.
            prefetch: Micro-batches that each worker reads ahead.
            pin: Whether batches are put into page-locked memory.
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
            except (RuntimeError, OSError, EOFError) as error:
                raise _readable_death(error) from error
            if reply.arrays:
                batch = {name: torch.from_numpy(array) for name, array in reply.arrays.items()}
                reply = reply._replace(batch=_pinned(batch) if self._pin else batch, arrays={})
            yield reply

    def _start(self) -> Iterator[Reply]:
        with warnings.catch_warnings():
            # The user chooses the number of workers. Forking a process with threads is torch's
            # default, and the workers do nothing that needs those threads.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            if self._loader is None:
                _check_open_files(self._workers)
                # torch's type of this function is that for lists of samples.
                transfer: Any = _Transfer(self._workers, self._prefetch)
                self._loader = torch_data.DataLoader(
                    self._reader,
                    batch_size=None,
                    sampler=self._requests,
                    num_workers=self._workers,
                    prefetch_factor=self._prefetch,
                    persistent_workers=True,
                    pin_memory=self._pin,
                    collate_fn=transfer,
                    worker_init_fn=outlive_signals,
                    # Without a generator the loader would draw from the global one.
                    generator=generator("data workers"),
                )
            with _signals_of_children_as_they_were():
                try:
                    iterator = iter(self._loader)
                except OSError as error:
                    raise _readable_death(error) from error
        if self._at_exit is None:
            # For a pool that is never closed: at exit, multiprocessing sends SIGTERM to the
            # workers, which ignore it, and would then wait for them for ever.
            workers = getattr(iterator, "_workers", [])
            self._at_exit = util.Finalize(None, kill_workers, args=(workers,), exitpriority=100)
        return iterator

    def close(self) -> None:
        """End the worker processes."""
        iterator = getattr(self._loader, "_iterator", None)
        self._loader = None
        workers = getattr(iterator, "_workers", [])
        if iterator is not None:
            # Without this call the processes would run until the iterator is collected, which a
            # caught exception that refers to it can delay.
            iterator._shutdown_workers()
        if self._at_exit is not None:
            self._at_exit.cancel()
            self._at_exit = None
        kill_workers(workers)  # a worker that is stuck in a read does not end by the shutdown

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
    """Return the int64 random keys of samples outside training, the same in every run.

    Args:
        index: int64 (samples,) indices.
    """
    return fold_numpy(fold(0, "evaluate"), index)


@contextlib.contextmanager
def _signals_of_children_as_they_were() -> Iterator[None]:
    """Restore the handler of SIGCHLD that torch replaces.

    torch's handler raises the error of a dead worker at any point of the program, even in the
    middle of a step or while another error ends the run. Without it the error is raised when the
    worker's batch is requested.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if is_main and signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)


def _check_open_files(workers: int) -> None:
    """Check that the workers' pipes can be made: torch's loader cannot clean up a half of them.

    Raises:
        UserError: The process may not open as many files.
    """
    if sys.platform != "linux":
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free, needed = most - len(os.listdir("/proc/self/fd")), 4 * workers + 8
    if most != resource.RLIM_INFINITY and free < needed:
        raise UserError(
            f"loader.workers={workers} need {needed} open files, but {free} are left; raise the "
            f"limit of open files (ulimit -n, now {most}), or lower loader.workers"
        )


def _pinned(batch: Batch) -> Batch:
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def _readable_death(error: Exception) -> Exception:
    text = str(error)
    if isinstance(error, ConnectionError | EOFError):
        # The worker died between announcing a batch and passing its memory.
        text = f"its connection broke ({error})"
    elif isinstance(error, OSError):
        text = f"the processes that read data lack files or memory: {error.strerror or error}"
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return UserError(
            f"{text}; raise the limit of open files (ulimit -n, now {most}), make room in "
            "/dev/shm, or lower loader.workers"
        )
    elif not re.search(r"DataLoader worker \(pid.*(killed|exited)", text):
        return error
    reason = re.sub(r"\s+", " ", text).strip().rstrip(".")
    return UserError(
        f"a process that reads data died: {reason}; give it more memory (or more /dev/shm), lower "
        f"loader.workers, or set loader.workers=0 to see the error itself"
    )
