"""AdamW with decoupled weight decay (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from quadriga.contracts import OptimizerConfig
from quadriga.optim.groups import decay_groups


class AdamWConfig(OptimizerConfig):
    """AdamW, the fused implementation, with decay rules by parameter name."""

    lr: float = Field(1e-3, ge=0)
    """Peak learning rate at a batch of `lr_batch` samples."""
    lr_batch: int = Field(256, ge=1)
    """The batch size that `lr` is stated for."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the learning rate follows the actual batch size."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay of the parameters that decay."""
    no_decay: tuple[str, ...] = (
        "norm",
        "bias",
        "position",
        "class_token",
        "mask_token",
        "register_token",
    )
    """Parameters whose name contains one of these do not decay; nor do scalars and vectors."""
    clip_norm: float | None = Field(None, gt=0)
    """Global gradient norm to clip to; none for no clipping."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> AdamWConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, but are {list(self.betas)}")
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over two groups, decayed and not."""
        groups = decay_groups(named_parameters, self.weight_decay, self.no_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
