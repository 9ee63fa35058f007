"""NAdam, Adam with Nesterov's momentum (Dozat, ICLR 2016 workshop)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim.nadam import nadam

from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.foreach import ForeachOptimizer, state_like, step_counts
from quadriga.optim.parts.groups import groups_of, require_below_one


@final
class NAdamConfig(OptimizerConfig):
    """Adam that looks at the gradient one momentum step ahead."""

    lr: float = Field(2e-3, ge=0)
    """Peak learning rate at a batch of `lr_batch` samples."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the parameters that decay."""
    decoupled: bool = True
    """Whether the decay shrinks the weights, as in AdamW; false adds it to the gradient."""
    momentum_decay: float = Field(4e-3, ge=0)
    """Psi of the schedule ``beta1 (1 - 0.96^(t psi) / 2)`` of the momentum."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> NAdamConfig:
        require_below_one("betas", self.betas)
        return self

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer over groups by rule; see `groups_of`."""
        return NAdam(groups_of(self, named_parameters), self)


@final
class NAdam(ForeachOptimizer):
    """torch's NAdam with a state that begins at zero.

    The product of the momenta so far begins at one; it is set before a parameter's first step.
    """

    def __init__(self, groups: list[dict[str, Any]], config: NAdamConfig) -> None:
        """Take parameter groups that each have ``weight_decay``."""
        self._config = config
        super().__init__(groups, {"lr": config.lr})

    def step_group(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        """Make the step of one group; see `ForeachOptimizer.step_group`."""
        config = self._config
        steps = step_counts(self, parameters, on_device=False)
        nadam(
            parameters,
            gradients,
            state_like(self, parameters, "exp_avg"),
            state_like(self, parameters, "exp_avg_sq"),
            self._products(parameters, steps),
            steps,
            decoupled_weight_decay=config.decoupled,
            foreach=True,
            beta1=config.betas[0],
            beta2=config.betas[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum_decay=config.momentum_decay,
            eps=config.eps,
        )

    def _products(self, parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> list[Tensor]:
        """Return the product of each parameter's momenta, float32 scalars on the CPU."""
        for parameter, step in zip(parameters, steps, strict=True):
            state = self.state[parameter]
            if "mu_product" not in state:
                state["mu_product"] = torch.zeros((), dtype=torch.float32, device="cpu")
            if not step:
                state["mu_product"].fill_(1.0)
        return [self.state[parameter]["mu_product"] for parameter in parameters]
