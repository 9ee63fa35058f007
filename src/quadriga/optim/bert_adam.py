"""BERT's Adam, without bias correction (Devlin et al., NAACL 2019, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.foreach import ForeachOptimizer, state_like
from quadriga.optim.parts.groups import groups_of, require_below_one


@final
class BertAdamConfig(OptimizerConfig):
    """The optimizer that BERT was published with."""

    lr: float = Field(1e-4, ge=0)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of the parameters that decay."""
    no_decay: tuple[str, ...] = ("norm", "bias")
    """Parameters whose name contains one of these do not decay; nor do scalars and vectors.
    Embeddings do, those of positions too."""

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
    """Adam whose moments are not corrected for their start at zero.

    With gradient g, weight x and decay b::

        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        x = x - lr (m / (sqrt(v) + eps) + b x)

    At step t the first moment is short by ``1 - beta1^t`` and the root of the second by
    ``sqrt(1 - beta2^t)``: the first updates are about three times those of Adam, which a warm-up
    makes up for. There is no count of steps among the state.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        """Take parameter groups that each have ``weight_decay``."""
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
        # x + (-lr) * m / root, without another list of temporaries.
        torch._foreach_addcdiv_(parameters, first, roots, value=-group["lr"])
