"""Tensors from stage to stage: point-to-point messages in order, received ahead of their use."""

from __future__ import annotations

from collections import deque
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from quadriga.pipeline.groups import Group

_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@final
class Sender:
    """Sends tensors to one neighbour without waiting for it."""

    def __init__(self, group: Group, peer: int) -> None:
        """Send to the rank `peer` in a group of its own."""
        self._group, self._peer = group, peer
        self._under_way: deque[tuple[Any, Tensor]] = deque()
        self._said_type = False

    @property
    def under_way(self) -> int:
        """Number of messages whose tensors are kept."""
        return len(self._under_way)

    def send(self, tensor: Tensor, most: int, says_type: bool = False) -> None:
        """Start to send; the tensor is kept until it is sent.

        Args:
            tensor: What to send; it must not be written to afterwards.
            most: How many messages, with this one, the receiver may not have asked for yet: older
                ones are let go. gloo does not say that one has been sent until it is waited for.
            says_type: Whether the receiver does not know the type: it is told once.
        """
        if says_type and not self._said_type:
            self._said_type = True
            self._start(torch.tensor([_TYPES.index(tensor.dtype)], device=tensor.device))
        self._start(tensor.contiguous())
        while self._under_way and self._under_way[0][0].is_completed():
            self._under_way.popleft()
        while len(self._under_way) > most:
            self._under_way.popleft()[0].wait()

    def _start(self, tensor: Tensor) -> None:
        if tensor.numel():
            work = dist.isend(tensor, self._peer, group=self._group)
            self._under_way.append((work, tensor))

    def finish(self) -> None:
        """Wait until everything is sent."""
        while self._under_way:
            self._under_way.popleft()[0].wait()


@final
class Receiver:
    """Receives tensors from one neighbour, in the order in which they were asked for."""

    def __init__(self, group: Group, peer: int, device: torch.device) -> None:
        """Receive from the rank `peer` in a group of its own, onto `device`."""
        self._group, self._peer, self._device = group, peer, device
        self._dtype: torch.dtype | None = None
        self._expected: deque[tuple[Any, Tensor]] = deque()

    def expect(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
        """Start to receive the next tensor.

        Args:
            shape: Its shape.
            dtype: Its type; None where the sender says it.
        """
        dtype = dtype or self._type()
        buffer = torch.empty(shape, dtype=dtype, device=self._device)
        work = dist.irecv(buffer, self._peer, group=self._group) if buffer.numel() else None
        self._expected.append((work, buffer))

    def take(self) -> Tensor:
        """Wait for the tensor that was asked for first."""
        work, buffer = self._expected.popleft()
        if work is not None:
            work.wait()
        return buffer

    def _type(self) -> torch.dtype:
        if self._dtype is None:
            number = torch.zeros(1, dtype=torch.int64, device=self._device)
            dist.recv(number, self._peer, group=self._group)
            self._dtype = _TYPES[int(number)]
        return self._dtype
