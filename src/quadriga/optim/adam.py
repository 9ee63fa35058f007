"""Adam with weight decay added to the gradient (Kingma and Ba, ICLR 2015, arXiv:1412.6980).

AdamW with decoupled weight decay (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101).

BERT's Adam, without bias correction (Devlin et al., NAACL 2019, arXiv:1810.04805).

NAdam, Adam with Nesterov's momentum (Dozat, ICLR 2016 workshop).

RAdam, Adam with a rectified step (Liu et al., ICLR 2020, arXiv:1908.03265).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from quadriga.config.base import Number
from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.eager import eager
from quadriga.optim.parts.foreach import ForeachOptimizer, state_like
from quadriga.optim.parts.groups import groups_of, require_below_one


@final
class AdamConfig(OptimizerConfig):
    """Adam, torch's fused implementation; kind ``adamw`` has decoupled weight decay."""

    lr: float = Field(1e-3, ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[Number, Number] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0, le=1.0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    """Weight decay added to the gradient, for parameters that `no_decay` does not exempt."""
    amsgrad: bool = False
    """Whether to use the maximum of the second moment so far (Reddi et al., arXiv:1904.09237)."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> AdamConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        return eager(torch.optim.Adam)(
            groups_of(self, named_parameters),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            amsgrad=self.amsgrad,
            fused=True,
        )


@final
class AdamWConfig(OptimizerConfig):
    """AdamW, torch's fused implementation."""

    lr: float = Field(1e-3, ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[Number, Number] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0, le=1.0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.05, ge=0, le=1e6)
    """Decoupled weight decay of the parameters that `no_decay` does not exempt."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> AdamWConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        groups = groups_of(self, named_parameters)
        return eager(torch.optim.AdamW)(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True
        )


@final
class BertAdamConfig(OptimizerConfig):
    """The optimizer of the original BERT."""

    lr: float = Field(1e-4, ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[Number, Number] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-6, gt=0, le=1.0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.01, ge=0, le=1e6)
    """Decoupled weight decay of the parameters that `no_decay` does not exempt."""
    no_decay: tuple[str, ...] = ("norm", "bias")
    """Parameters whose name contains one of these have no weight decay, nor have scalars and
    vectors. Embeddings decay, including position embeddings."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> BertAdamConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        groups = groups_of(self, named_parameters)
        return BertAdam(groups, lr=self.lr, betas=self.betas, eps=self.eps)


@final
class BertAdam(ForeachOptimizer):
    """Adam without bias correction.

    With gradient g, weight x and decay b::

        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        x = x - lr (m / (sqrt(v) + eps) + b x)

    At step t the first moment is too small by the factor ``1 - beta1^t`` and the root of the second
    by ``sqrt(1 - beta2^t)``. The first updates are about three times those of Adam, for which a
    warm-up compensates. The state has no step count.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        """Make the optimizer; every group has ``weight_decay``."""
        self._betas, self._eps = betas, eps
        super().__init__(groups, {"lr": lr})

    def step_group(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        """Make the step of one group; see `ForeachOptimizer.step_group`."""
        beta1, beta2 = self._betas
        first = state_like(self, parameters, "exp_avg")
        second = state_like(self, parameters, "exp_avg_sq")
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1.0 - beta2)
        roots = torch._foreach_sqrt(second)
        torch._foreach_add_(roots, self._eps)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        # x - lr * m / root, without another list of temporaries.
        torch._foreach_addcdiv_(parameters, first, roots, value=-group["lr"])


@final
class NAdamConfig(OptimizerConfig):
    """Adam with Nesterov momentum."""

    lr: float = Field(2e-3, ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[Number, Number] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0, le=1.0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    """Weight decay of the parameters that `no_decay` does not exempt."""
    decoupled: bool = True
    """Whether the weight decay is decoupled, as in AdamW; false adds it to the gradient."""
    momentum_decay: float = Field(4e-3, ge=0, le=1e3)
    """psi in the momentum's schedule ``beta1 (1 - 0.96^(t psi) / 2)``."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> NAdamConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        return eager(torch.optim.NAdam)(
            groups_of(self, named_parameters),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            momentum_decay=self.momentum_decay,
            decoupled_weight_decay=self.decoupled,
            foreach=True,
        )


@final
class RAdamConfig(OptimizerConfig):
    """Rectified Adam: plain momentum in the first steps, until the second moment is reliable."""

    lr: float = Field(1e-3, ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[Number, Number] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0, le=1.0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    """Weight decay of the parameters that `no_decay` does not exempt."""
    decoupled: bool = True
    """Whether the weight decay is decoupled, as in AdamW; false adds it to the gradient."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> RAdamConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        return eager(torch.optim.RAdam)(
            groups_of(self, named_parameters),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            decoupled_weight_decay=self.decoupled,
            foreach=True,
        )
