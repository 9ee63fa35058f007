"""AdamW with decoupled weight decay (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field, model_validator
from torch import nn

from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.groups import groups_of, require_below_one


@final
class AdamWConfig(OptimizerConfig):
    """AdamW, the fused implementation, with decay rules by parameter name."""

    lr: float = Field(1e-3, ge=0)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay of the parameters that decay."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> AdamWConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        groups = groups_of(self, named_parameters)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
