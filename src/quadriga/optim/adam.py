"""Adam, its decay added to the gradient (Kingma and Ba, ICLR 2015, arXiv:1412.6980)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field, model_validator
from torch import nn

from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.groups import groups_of, require_below_one


@final
class AdamConfig(OptimizerConfig):
    """Adam, the fused implementation; with decoupled decay it is ``adamw``."""

    lr: float = Field(1e-3, ge=0)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the parameters that decay, added to their gradient."""
    amsgrad: bool = False
    """Whether the second moment is its greatest so far (Reddi et al., arXiv:1904.09237)."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> AdamConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        return torch.optim.Adam(
            groups_of(self, named_parameters),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            amsgrad=self.amsgrad,
            fused=True,
        )
