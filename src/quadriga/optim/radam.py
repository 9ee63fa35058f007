"""RAdam, Adam with a rectified step (Liu et al., ICLR 2020, arXiv:1908.03265)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field, model_validator
from torch import nn

from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.groups import groups_of, require_below_one


@final
class RAdamConfig(OptimizerConfig):
    """Adam whose first steps are momentum alone, until the second moment can be trusted."""

    lr: float = Field(1e-3, ge=0)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the parameters that decay."""
    decoupled: bool = True
    """Whether the decay shrinks the weights, as in AdamW; false adds it to the gradient."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> RAdamConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        return torch.optim.RAdam(
            groups_of(self, named_parameters),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            decoupled_weight_decay=self.decoupled,
            foreach=True,
        )
