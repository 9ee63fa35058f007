"""The sum of gradients over replicas, exchanged while the last backward pass goes on."""

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
"""A small first bucket starts the exchange early; then large ones use the network well."""


@final
class _Bucket:
    """Some parameters whose gradients lie in one flat tensor."""

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
    """Adds up the gradients of all replicas in buckets, as the last backward pass makes them.

    Unlike DistributedDataParallel it needs no forward pass of its own: parameters that only a
    part of a step uses, or no rank uses, are summed with the others, as zeros where there is no
    gradient. Every rank reduces the same buckets in the same order, whatever its graph was.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], samples: SampleGroup) -> None:
        """Take the trainable parameters of a rank; every rank of `samples` calls it.

        Args:
            named: In the order of the forward pass, with their names.
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
            complete: Beginnings of the names of parameters that it does not reach.
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
        """Take note that a parameter has its gradient."""
        if not self._is_last:
            return
        bucket.waiting.discard(number)
        self._start_ready()

    def _start_ready(self) -> None:
        # In order: the ranks' collectives must meet. What stays behind is started at the end.
        while len(self._works) < len(self._buckets):
            if self._buckets[len(self._works)].waiting:
                return
            self._start_next()

    def _start_next(self) -> None:
        flat = self._buckets[len(self._works)].flat
        self._works.append(dist.all_reduce(flat, group=self._group, async_op=True))


def _tell(total: weakref.ref[GradientSum], bucket: _Bucket, number: int, parameter: Tensor) -> None:
    # By a weak reference: a parameter that outlives the sum must not keep the process group.
    if (found := total()) is not None:
        found.ready(bucket, number)


def _cut(named: Sequence[tuple[str, nn.Parameter]]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Cut into buckets of one type and device each, a small one first."""
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
    """Measures the exposed part of the exchange: from the end of the backward pass to its own.

    A rank that waits for a slower one counts that as well. On CUDA it is measured on the device,
    by two events that are read when they are over, usually a step late, so that nothing is
    synchronised.
    """

    def __init__(self, device: torch.device) -> None:
        """Measure on a device."""
        self._on_cuda = device.type == "cuda"
        self._began: Any = None
        self._pending: deque[tuple[Any, Any]] = deque()
        self._seconds = 0.0

    def backward_ended(self) -> None:
        """Say that nothing is left to compute."""
        self._began = self._now()

    def exchange_ended(self) -> None:
        """Say that the gradients are summed."""
        self._pending.append((self._began, self._now()))

    def take_seconds(self) -> float:
        """Return the exposed seconds known since the last call."""
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
