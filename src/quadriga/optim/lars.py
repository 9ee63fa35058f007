"""LARS, a learning rate per layer from its norms (You et al. 2017, arXiv:1708.03888)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from pydantic import Field
from torch import Tensor, nn

from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.foreach import ForeachOptimizer, norms_of, state_like, trust_ratio
from quadriga.optim.parts.groups import groups_of, is_exempt


@final
class LARSConfig(OptimizerConfig):
    """LARS; parameters that do not decay take plain momentum SGD."""

    lr: float = Field(0.3, ge=0)
    """Peak learning rate at a batch of `lr_batch` samples."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the last update that is kept."""
    weight_decay: float = Field(1e-6, ge=0)
    """Weight decay of the parameters that decay, added to their gradient."""
    trust_coefficient: float = Field(1e-3, gt=0)
    """How far, as a share of its norm, a tensor may move at a learning rate of 1."""
    eps: float = Field(1e-8, ge=0)
    """Added to the denominator of the trust ratio."""

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""

        def adapts(name: str, parameter: nn.Parameter) -> dict[str, Any]:
            return {"adapt": not is_exempt(name, parameter, self.no_decay)}

        return LARS(
            groups_of(self, named_parameters, adapts),
            lr=self.lr,
            momentum=self.momentum,
            trust_coefficient=self.trust_coefficient,
            eps=self.eps,
        )


@final
class LARS(ForeachOptimizer):
    """SGD with momentum whose step is scaled tensor by tensor.

    You et al. 2017, algorithm 1, with gradient g, weight w, decay b and trust coefficient h::

        trust = h |w| / (|g| + b |w| + eps)
        v = momentum v + lr trust (g + b w)
        w = w - v

    The trust ratio is 1 where a norm is 0; groups whose ``adapt`` is false have neither it nor
    decay. The learning rate is inside the buffer v: a change of it acts over as many steps as v
    remembers.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        trust_coefficient: float,
        eps: float,
    ) -> None:
        """Take parameter groups that each have ``weight_decay`` and ``adapt``."""
        self._momentum, self._trust_coefficient, self._eps = momentum, trust_coefficient, eps
        super().__init__(groups, {"lr": lr})

    def step_group(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        """Make the step of one group; see `ForeachOptimizer.step_group`."""
        velocities = state_like(self, parameters, "momentum_buffer")
        decay = group["weight_decay"]
        updates: list[Tensor] | tuple[Tensor, ...] = gradients
        if group["adapt"]:
            weights, slopes = norms_of(parameters), norms_of(gradients)
            divisor = (slopes + decay * weights + self._eps) / self._trust_coefficient
            trust = trust_ratio(weights, slopes, divisor)
            updates = torch._foreach_add(gradients, parameters, alpha=decay)
            torch._foreach_mul_(updates, list(trust.unbind()))
        torch._foreach_mul_(velocities, self._momentum)
        torch._foreach_add_(velocities, updates, alpha=group["lr"])
        torch._foreach_sub_(parameters, velocities)
