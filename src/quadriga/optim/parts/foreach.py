"""Shared parts of this project's optimizers, which process lists of tensors with foreach calls.

They use only whole-tensor operations that DTensor supports, so that a norm is the norm of the full
tensor on any layout, and nothing synchronises with the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from quadriga.optim.parts.eager import EagerOptimizer


class ForeachOptimizer(EagerOptimizer, ABC):
    """An optimizer that computes the step of a whole group in a few calls."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step.

        Args:
            closure: Recomputes the loss and the gradients, if given.

        Returns:
            The value of `closure`; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self.step_group(group, parameters, [p.grad for p in parameters])
        return loss

    @abstractmethod
    def step_group(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        """Make the step of one group.

        Args:
            group: The group's settings; ``lr`` is the learning rate of this step.
            parameters: The group's parameters that have a gradient.
            gradients: Their gradients.
        """


def state_like(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], key: str
) -> list[Tensor]:
    """Return one state tensor per parameter, of its shape; missing ones are created as zero."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if key not in state:
            state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return [optimizer.state[parameter][key] for parameter in parameters]


def average_in(
    optimizer: torch.optim.Optimizer, parameter: Tensor, key: str, value: Tensor, share: float
) -> Tensor:
    """Update a running average in a parameter's state with a new value, and return the average.

    Args:
        optimizer: The optimizer that holds the state.
        parameter: The parameter.
        key: Name of the state.
        value: The new value; the state has its shape and layout, and starts at zero.
        share: Weight of `value`, from 0 to 1.
    """
    state = optimizer.state[parameter]
    if key not in state:
        state[key] = torch.zeros_like(value)
    average: Tensor = state[key].lerp_(value, share)
    return average


def gathered(tensor: Tensor, pending_only: bool = False) -> Tensor:
    """Return a sharded tensor replicated on every rank.

    Args:
        tensor: Sharded or not.
        pending_only: Whether to complete only pending reductions and leave shards in place.
    """
    if not hasattr(tensor, "device_mesh"):
        return tensor
    # A DTensor exists, so this module is loaded; a top-level import would cost seconds at start.
    from torch.distributed.tensor import Replicate

    found = [
        p if pending_only and not p.is_partial() else Replicate()
        for p in tensor.placements  # type: ignore[attr-defined]
    ]
    return tensor.redistribute(placements=found)  # type: ignore[attr-defined, no-any-return]


def step_counts(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    on_device: bool,
) -> list[Tensor]:
    """Return each parameter's number of steps as float32 scalars; missing ones are created as 0.

    Args:
        optimizer: The optimizer that holds the state.
        parameters: The parameters.
        on_device: Whether the counts are on the parameter's device, or on the CPU, where reading
            them does not synchronise.
    """
    for parameter in parameters:
        state = optimizer.state[parameter]
        if "step" not in state:
            device = parameter.device if on_device else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
    return [optimizer.state[parameter]["step"] for parameter in parameters]


def norms_of(tensors: Sequence[Tensor]) -> Float[Tensor, " tensors"]:
    """Return the Euclidean norm of each tensor."""
    return torch.stack(torch._foreach_norm(list(tensors)))


def trust_ratio(
    parameter: Float[Tensor, " tensors"],
    update: Float[Tensor, " tensors"],
    divisor: Float[Tensor, " tensors"],
) -> Float[Tensor, " tensors"]:
    """Return ``parameter / divisor``, and 1 where the norm of the parameter or update is 0.

    Args:
        parameter: Norm of each parameter.
        update: Norm of each update.
        divisor: Denominator of each ratio.
    """
    return torch.where((parameter > 0) & (update > 0), parameter / divisor, 1.0)
