"""An exponential moving average of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn

from quadriga.distributed.collectives import local_part


@final
class WeightEMA:
    """``average = d * average + (1 - d) * weights`` after each optimizer step.

    Polyak and Juditsky (1992), in the exponential form of Tarvainen and Valpola (2017,
    arXiv:1703.01780). The average of a sharded weight is sharded in the same way, so the update is
    elementwise and needs no communication.
    """

    def __init__(
        self, named: Sequence[tuple[str, nn.Parameter]], decay: float, warmup: bool = False
    ) -> None:
        """Initialise the average with the current weights.

        Args:
            named: Global names and parameters, full or sharded.
            decay: d, in [0, 1).
            warmup: Whether d is at most (1 + t) / (10 + t) after t updates.
        """
        self._decay, self._warmup = decay, warmup
        self._parameters = [parameter for _, parameter in named]
        with torch.no_grad():
            self.tensors: dict[str, Tensor] = {
                name: parameter.detach().clone() for name, parameter in named
            }

    def decay_at(self, updates: int) -> float:
        """Return d for an update after `updates` earlier ones."""
        if not self._warmup:
            return self._decay
        return min(self._decay, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Update the average with the weights after an optimizer step, after `updates` others."""
        if not self.tensors:
            return
        ema = [local_part(tensor) for tensor in self.tensors.values()]
        weights = [local_part(parameter) for parameter in self._parameters]
        torch._foreach_lerp_(ema, weights, 1.0 - self.decay_at(updates))

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Return a context in which the parameters hold the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, ema in zip(self._parameters, self.tensors.values(), strict=True):
            there, here = local_part(parameter), local_part(ema)
            kept = there.clone()
            there.copy_(here)
            here.copy_(kept)
