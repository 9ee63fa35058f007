"""Stochastic gradient descent with momentum (Sutskever et al., ICML 2013).

Adadelta (Zeiler, arXiv:1212.5701).

RMSprop (Tieleman and Hinton, 2012; centered: Graves, arXiv:1308.0850).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field, model_validator
from torch import nn

from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.eager import eager
from quadriga.optim.parts.groups import groups_of


@final
class SGDConfig(OptimizerConfig):
    """SGD with momentum; weight decay is added to the gradient (L2)."""

    lr: float = Field(0.03, ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum: factor of the previous update in the next one."""
    nesterov: bool = False
    """Whether to use Nesterov momentum."""
    weight_decay: float = Field(1e-4, ge=0, le=1e6)
    """Weight decay added to the gradient, for parameters that `no_decay` does not exempt."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGDConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov must be false without momentum, but is true; set momentum")
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        return eager(torch.optim.SGD)(
            groups_of(self, named_parameters),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            # Not fused, because torch has no fused SGD for sharded parameters.
            foreach=True,
        )


@final
class AdadeltaConfig(OptimizerConfig):
    """Adadelta: gradients scaled by the ratio of the RMS of past updates to that of gradients."""

    lr: float = Field(1.0, ge=0, le=1e6)
    """Peak factor of the update at a batch of `lr_batch` samples."""
    rho: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the mean squares."""
    eps: float = Field(1e-6, gt=0, le=1.0)
    """Added to the mean squares before their roots."""
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    """Weight decay added to the gradient, for parameters that `no_decay` does not exempt."""

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        groups = groups_of(self, named_parameters)
        return eager(torch.optim.Adadelta)(
            groups, lr=self.lr, rho=self.rho, eps=self.eps, foreach=True
        )


@final
class RMSpropConfig(OptimizerConfig):
    """RMSprop: gradients divided by the root of their running mean square, with momentum."""

    lr: float = Field(1e-2, ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    alpha: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the mean square."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum: factor of the previous update in the next one."""
    eps: float = Field(1e-8, gt=0, le=1.0)
    """Added to the root of the mean square."""
    centered: bool = False
    """Whether to subtract the square of the mean from the mean square."""
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    """Weight decay added to the gradient, for parameters that `no_decay` does not exempt."""

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        return eager(torch.optim.RMSprop)(
            groups_of(self, named_parameters),
            lr=self.lr,
            alpha=self.alpha,
            eps=self.eps,
            momentum=self.momentum,
            centered=self.centered,
            foreach=True,
        )
