"""Parameter groups by rule, and the optimizer's state made before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def decay_groups(
    named_parameters: Sequence[tuple[str, nn.Parameter]],
    weight_decay: float,
    no_decay: Sequence[str],
) -> list[dict[str, Any]]:
    """Split trainable parameters into a decayed and an undecayed group.

    Args:
        named_parameters: Global names and parameters; those without gradient are left out.
        weight_decay: Decay of the decayed group.
        no_decay: A parameter whose name contains one of these does not decay; nor does a
            parameter with fewer than two dimensions.

    Returns:
        Non-empty groups, each with ``params``, ``weight_decay`` and ``lr_scale``.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or any(part in name for part in no_decay)
            (undecayed if exempt else decayed).append(parameter)
    groups = [(decayed, weight_decay), (undecayed, 0.0)]
    return [
        {"params": members, "weight_decay": decay, "lr_scale": 1.0}
        for members, decay in groups
        if members
    ]


def materialise_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the optimizer's state tensors, all zero, as they are before the first step.

    torch creates them inside the first step. Made here, the state has the same names and shapes
    at every step, 0 included, and a checkpoint can be read into it in place.
    """
    saved = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, lr in zip(optimizer.param_groups, saved, strict=True):
        group["lr"] = lr
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
