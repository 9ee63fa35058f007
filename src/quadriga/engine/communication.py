"""How long the backward pass waits for the exchange of gradients that it could not hide."""

# Annotations are values here, not text: DistributedDataParallel compares those of its hook.

import time
from collections import deque
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@final
class CommunicationTimer:
    """Measures the exposed part of DistributedDataParallel's reduction on this rank.

    Exposed is the time from the moment that the last bucket of gradients is ready, when nothing
    is left to compute, to the end of the backward pass. A rank that waits for a slower one counts
    that as well. On CUDA it is measured on the device, by two events that are read when they are
    over, usually a step late, so that nothing is synchronised.

    Sharded models (FSDP2) gather and scatter on streams of their own, at places that differ by
    layer, and tell nobody: for these, and for a single process, nothing is measured.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """Take the model as the executor calls it, before its first backward pass.

        Args:
            model: A DistributedDataParallel gets a communication hook that reduces just as it
                does without one, to the bit; anything else is left alone.
            device: Where it computes.
        """
        self._measures = isinstance(model, DistributedDataParallel)
        self._on_cuda = device.type == "cuda"
        self._ready: Any = None
        self._pending: deque[tuple[Any, Any]] = deque()
        self._seconds = 0.0
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(model.process_group, self._reduce)

    def _reduce(
        self,
        group: dist.ProcessGroup,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        """Average a bucket over the ranks: what DistributedDataParallel does by itself."""
        gradients = bucket.buffer()
        # Multiplied by the reciprocal, as there, and not divided: the two round differently.
        gradients.mul_(1.0 / group.size())
        if bucket.is_last():
            self._ready = self._now()
        work = dist.all_reduce(gradients, group=group, async_op=True)
        assert work is not None
        future: torch.futures.Future[Any] = work.get_future()
        return future.then(lambda done: done.value()[0])

    def backward_ended(self) -> None:
        """Say that ``backward()`` has returned; without a reduction in it, nothing is counted."""
        if self._ready is not None:
            self._pending.append((self._ready, self._now()))
            self._ready = None

    def take_seconds(self) -> float | None:
        """Return the exposed seconds known since the last call, None where none are measured."""
        if not self._measures:
            return None
        while self._pending:
            ready, ended = self._pending[0]
            if self._on_cuda:
                if not ended.query():
                    break
                self._seconds += ready.elapsed_time(ended) / 1000
            else:
                self._seconds += ended - ready
            self._pending.popleft()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
