"""Adafactor (Shazeer and Stern, ICML 2018, arXiv:1804.04235)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from pydantic import Field
from torch import Tensor, nn

from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.foreach import (
    ForeachOptimizer,
    average_in,
    gathered,
    norms_of,
    step_counts,
)
from quadriga.optim.parts.groups import groups_of

_SQUARE_EPS = 1e-30  # Epsilon 1 of the paper, added to squared gradients.


@final
class AdafactorConfig(OptimizerConfig):
    """Adafactor: steps relative to the weights, factored second moments of matrices."""

    lr: float = Field(1e-2, ge=0, le=1e6)
    """Peak step relative to the weights' root mean square, at a batch of `lr_batch` samples;
    limited to ``1 / sqrt(step)``."""
    beta2_exponent: float = Field(0.8, ge=0, le=1e3)
    """Exponent c of the second moment's decay rate ``1 - step^-c``."""
    least_scale: float = Field(1e-3, ge=0, le=1e3)
    """Lower limit of the weights' root mean square (epsilon 2 of the paper)."""
    clip_threshold: float = Field(1.0, gt=0, le=1e6)
    """Upper limit of the root mean square of an update, before the learning rate."""
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    """Decoupled weight decay of the parameters that `no_decay` does not exempt."""

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        return Adafactor(groups_of(self, named_parameters), self)


@final
class Adafactor(ForeachOptimizer):
    """Adafactor without momentum for full or sharded parameters, without device synchronisation.

    `torch.optim.Adafactor` (torch 2.13) computes the same step, but fails on sharded matrices and
    synchronises with the device twice per tensor.

    Shazeer and Stern 2018, algorithms 4 and 5, with gradient g, weight x, decay b, step t,
    ``B = 1 - t^-c``, and means along the last dimension (R), the one before it (C) and both::

        R = B R + (1 - B) mean_R(g^2)      C = B C + (1 - B) mean_C(g^2)
        u = g / sqrt(R C / mean(R))        u = u / max(1, rms(u) / d)
        x = x (1 - lr b) - max(e, rms(x)) min(lr, 1 / sqrt(t)) u

    A vector has one moment per element.
    """

    def __init__(self, groups: list[dict[str, Any]], config: AdafactorConfig) -> None:
        """Make the optimizer; every group has ``weight_decay``."""
        self._config = config
        super().__init__(groups, {"lr": config.lr})

    def step_group(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        """Make the step of one group; see `ForeachOptimizer.step_group`."""
        config, lr = self._config, float(group["lr"])
        steps = step_counts(self, parameters, on_device=False)
        torch._foreach_add_(steps, 1.0)
        counts = [float(step) for step in steps]
        updates = [
            gradient / self._roots(parameter, gradient, count**-config.beta2_exponent)
            for parameter, gradient, count in zip(parameters, gradients, counts, strict=True)
        ]
        sizes = [math.sqrt(parameter.numel()) for parameter in parameters]
        scales = torch._foreach_div(list(norms_of(parameters).unbind()), sizes)
        torch._foreach_clamp_min_(scales, config.least_scale)
        excess = torch._foreach_div(list(norms_of(updates).unbind()), sizes)
        torch._foreach_div_(excess, config.clip_threshold)
        torch._foreach_clamp_min_(excess, 1.0)
        torch._foreach_div_(scales, excess)
        torch._foreach_mul_(scales, [-min(lr, 1 / math.sqrt(count)) for count in counts])
        torch._foreach_mul_(updates, scales)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1.0 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, updates)

    def _roots(self, parameter: Tensor, gradient: Tensor, share: float) -> Tensor:
        """Update the second moments, with weight `share` of the new gradient; return their root."""
        if gradient.dim() < 2:
            squares = gradient.square() + _SQUARE_EPS
            return average_in(self, parameter, "variance", squares, share).sqrt()
        rows = average_in(self, parameter, "row_variance", _mean_square(gradient, -1), share)
        columns = average_in(self, parameter, "column_variance", _mean_square(gradient, -2), share)
        mean = gathered(rows.sum(dim=-2, keepdim=True), pending_only=True) / rows.shape[-2]
        return (rows / mean).sqrt() * columns.sqrt()


def _mean_square(tensor: Tensor, dim: int) -> Tensor:
    norm = gathered(torch.linalg.vector_norm(tensor, dim=dim, keepdim=True), pending_only=True)
    return norm.square() / tensor.shape[dim] + _SQUARE_EPS
