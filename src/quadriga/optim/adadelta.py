"""Adadelta (Zeiler, arXiv:1212.5701)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import nn

from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.groups import groups_of


@final
class AdadeltaConfig(OptimizerConfig):
    """The gradient, scaled by the ratio of the past updates' size to the gradients'."""

    lr: float = Field(1.0, ge=0)
    """Peak factor of the update at a batch of `lr_batch` samples."""
    rho: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the mean squares."""
    eps: float = Field(1e-6, gt=0)
    """Added to the mean squares before their roots."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the parameters that decay, added to their gradient."""

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        groups = groups_of(self, named_parameters)
        return torch.optim.Adadelta(groups, lr=self.lr, rho=self.rho, eps=self.eps, foreach=True)
