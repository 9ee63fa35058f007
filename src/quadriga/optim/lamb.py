"""LAMB, Adam with a trust ratio per layer (You et al., ICLR 2020, arXiv:1904.00962).

LARS, a learning rate per layer from its norms (You et al. 2017, arXiv:1708.03888).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from quadriga.config.base import Number
from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.foreach import (
    ForeachOptimizer,
    norms_of,
    state_like,
    step_counts,
    trust_ratio,
)
from quadriga.optim.parts.groups import groups_of, is_exempt, require_below_one


@final
class LAMBConfig(OptimizerConfig):
    """LAMB with bias correction."""

    lr: float = Field(3e-3, ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[Number, Number] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-6, gt=0, le=1.0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.01, ge=0, le=1e6)
    """Decoupled weight decay of the parameters that `no_decay` does not exempt."""
    adapt_all: bool = False
    """Whether parameters without weight decay have a trust ratio as well."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> LAMBConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""

        def adapts(name: str, parameter: nn.Parameter) -> dict[str, Any]:
            exempt = is_exempt(name, parameter, self.no_decay, self.decay_vectors)
            return {"adapt": self.adapt_all or not exempt}

        groups = groups_of(self, named_parameters, adapts)
        return LAMB(groups, lr=self.lr, betas=self.betas, eps=self.eps)


@final
class LAMB(ForeachOptimizer):
    """Adam's direction, scaled per tensor to a step in proportion to the tensor's norm.

    You et al. 2020, algorithm 2, with phi the identity, gradient g, weight x and decay b::

        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        r = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        x = x - lr |x| / |r + b x| (r + b x)

    The ratio is 1 if a norm is 0, and in groups whose ``adapt`` is false.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        """Make the optimizer; every group has ``weight_decay`` and ``adapt``."""
        self._betas, self._eps = betas, eps
        super().__init__(groups, {"lr": lr})

    def step_group(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        """Make the step of one group; see `ForeachOptimizer.step_group`."""
        beta1, beta2 = self._betas
        steps = step_counts(self, parameters, on_device=False)
        torch._foreach_add_(steps, 1.0)
        counts = [float(step) for step in steps]
        first = state_like(self, parameters, "exp_avg")
        second = state_like(self, parameters, "exp_avg_sq")
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1.0 - beta2)
        roots = torch._foreach_sqrt(second)
        torch._foreach_div_(roots, [math.sqrt(1.0 - beta2**t) for t in counts])
        torch._foreach_add_(roots, self._eps)
        updates = torch._foreach_div(first, [1.0 - beta1**t for t in counts])
        torch._foreach_div_(updates, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if group["adapt"]:
            lengths = norms_of(updates)
            trust = trust_ratio(norms_of(parameters), lengths, lengths)
            torch._foreach_mul_(updates, list(trust.unbind()))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


@final
class LARSConfig(OptimizerConfig):
    """LARS; parameters without weight decay use plain momentum SGD."""

    lr: float = Field(0.3, ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum: factor of the previous update in the next one."""
    weight_decay: float = Field(1e-6, ge=0, le=1e6)
    """Weight decay added to the gradient, for parameters that `no_decay` does not exempt."""
    trust_coefficient: float = Field(1e-3, gt=0, le=1e3)
    """Length of a tensor's step relative to its norm, at a learning rate of 1."""
    eps: float = Field(1e-8, ge=0, le=1.0)
    """Added to the denominator of the trust ratio."""

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""

        def adapts(name: str, parameter: nn.Parameter) -> dict[str, Any]:
            exempt = is_exempt(name, parameter, self.no_decay, self.decay_vectors)
            return {"adapt": not exempt}

        return LARS(
            groups_of(self, named_parameters, adapts),
            lr=self.lr,
            momentum=self.momentum,
            trust_coefficient=self.trust_coefficient,
            eps=self.eps,
        )


@final
class LARS(ForeachOptimizer):
    """SGD with momentum and a trust ratio per tensor.

    You et al. 2017, algorithm 1, with gradient g, weight w, decay b and trust coefficient h::

        trust = h |w| / (|g| + b |w| + eps)
        v = momentum v + lr trust (g + b w)
        w = w - v

    The trust ratio is 1 if a norm is 0. Groups whose ``adapt`` is false have neither a trust ratio
    nor weight decay. The buffer v includes the learning rate, so a change of the learning rate
    takes effect gradually.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        trust_coefficient: float,
        eps: float,
    ) -> None:
        """Make the optimizer; every group has ``weight_decay`` and ``adapt``."""
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
