"""All-reduce of gradients over replicas, overlapped with the last backward pass."""

from __future__ import annotations

import contextlib
import functools
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quadriga.distributed.mesh import SampleGroup

FIRST_BUCKET_BYTES = 1 << 20
BUCKET_BYTES = 25 << 20
"""Bucket sizes: a small first bucket starts communication early, large ones use the bandwidth."""


@final
class _Bucket:
    """Parameters whose gradients are views of one flat tensor."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        self.names = [name for name, _ in named]
        self.parameters = parameters = [parameter for _, parameter in named]
        first = parameters[0]
        sizes = [p.numel() for p in parameters]
        self.flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        views = torch.split(self.flat, sizes)
        self.views = [v.view_as(p) for v, p in zip(views, parameters, strict=True)]
        self.waiting: set[int] = set()


@final
class GradientSum:
    """All-reduces the gradients of all replicas in buckets during the last backward pass.

    Unlike DistributedDataParallel it does not wrap the forward pass. Parameters that only some
    passes or no rank uses are reduced like the others, with zeros where there is no gradient.
    Every rank reduces the same buckets in the same order, whatever its graph is.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], samples: SampleGroup) -> None:
        """Make the buckets and register hooks on the parameters; every rank of `samples` calls it.

        Args:
            named: Names and trainable parameters, in the order of the forward pass.
            samples: The replicas.
        """
        self._group = samples.group
        self._buckets = [_Bucket(part) for part in _cut(list(reversed(named)))]
        self._is_last = False
        self._works: list[Any] = []
        self.timer = ExchangeTimer(named[0][1].device)
        for bucket in self._buckets:
            for number, parameter in enumerate(bucket.parameters):
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    functools.partial(_tell, weakref.ref(self), bucket, number)
                )

    def begin(self) -> None:
        """Set every gradient to zero; called before the first backward pass of a step."""
        for bucket in self._buckets:
            bucket.flat.zero_()
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view

    @contextlib.contextmanager
    def last_backward(self, complete: Sequence[str] = ()) -> Iterator[None]:
        """Return a context for the last backward pass; at its end the gradients are summed.

        Args:
            complete: Name prefixes of parameters that this pass does not reach.
        """
        self._is_last, self._works = True, []
        begins = tuple(complete)
        for bucket in self._buckets:
            names = enumerate(bucket.names)
            bucket.waiting = {number for number, name in names if not name.startswith(begins)}
        self._start_ready()
        try:
            yield
        finally:
            self._is_last = False
        self.timer.backward_ended()
        while len(self._works) < len(self._buckets):
            self._start_next()
        for work in self._works:
            work.wait()
        self.timer.exchange_ended()

    def ready(self, bucket: _Bucket, number: int) -> None:
        """Mark a parameter's gradient as complete, and start the buckets that are complete."""
        if not self._is_last:
            return
        bucket.waiting.discard(number)
        self._start_ready()

    def _start_ready(self) -> None:
        # In order, because collectives must match across ranks. `last_backward` starts the rest.
        while len(self._works) < len(self._buckets):
            if self._buckets[len(self._works)].waiting:
                return
            self._start_next()

    def _start_next(self) -> None:
        flat = self._buckets[len(self._works)].flat
        self._works.append(dist.all_reduce(flat, group=self._group, async_op=True))


def _tell(total: weakref.ref[GradientSum], bucket: _Bucket, number: int, parameter: Tensor) -> None:
    # A weak reference, so that a parameter that outlives the sum does not keep the process group.
    if (found := total()) is not None:
        found.ready(bucket, number)


def _cut(named: Sequence[tuple[str, nn.Parameter]]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Divide parameters into buckets of one dtype and device each, a small bucket first."""
    bucket: list[tuple[str, nn.Parameter]] = []
    limit, size = FIRST_BUCKET_BYTES, 0
    for name, parameter in named:
        kind = (parameter.dtype, parameter.device)
        if bucket and (size >= limit or kind != (bucket[0][1].dtype, bucket[0][1].device)):
            yield bucket
            bucket, limit, size = [], BUCKET_BYTES, 0
        bucket.append((name, parameter))
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket


@final
class ExchangeTimer:
    """Measures exposed communication: from the end of the backward pass to that of the all-reduce.

    It includes waiting for slower ranks. On CUDA two events measure it on the device; they are
    read once they have completed, usually a step late, so that nothing is synchronised.
    """

    def __init__(self, device: torch.device) -> None:
        """Start with no measurement on `device`."""
        self._on_cuda = device.type == "cuda"
        self._began: Any = None
        self._pending: deque[tuple[Any, Any]] = deque()
        self._seconds = 0.0

    def backward_ended(self) -> None:
        """Mark the end of the backward pass."""
        self._began = self._now()

    def exchange_ended(self) -> None:
        """Mark the end of the all-reduce."""
        self._pending.append((self._began, self._now()))

    def take_seconds(self) -> float:
        """Return the exposed seconds of the measurements completed since the last call."""
        while self._pending:
            began, ended = self._pending[0]
            if self._on_cuda:
                if not ended.query():
                    break
                self._seconds += began.elapsed_time(ended) / 1000
            else:
                self._seconds += ended - began
            self._pending.popleft()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
