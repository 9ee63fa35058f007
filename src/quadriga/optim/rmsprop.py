"""RMSprop (Tieleman and Hinton, 2012; centered: Graves, arXiv:1308.0850)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import nn

from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.groups import groups_of


@final
class RMSpropConfig(OptimizerConfig):
    """The gradient over the root of its mean square, with momentum."""

    lr: float = Field(1e-2, ge=0)
    """Peak learning rate at a batch of `lr_batch` samples."""
    alpha: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the mean square."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the last update that is kept."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the mean square."""
    centered: bool = False
    """Whether the square of the mean is taken off the mean square."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the parameters that decay, added to their gradient."""

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        return torch.optim.RMSprop(
            groups_of(self, named_parameters),
            lr=self.lr,
            alpha=self.alpha,
            eps=self.eps,
            momentum=self.momentum,
            centered=self.centered,
            foreach=True,
        )
