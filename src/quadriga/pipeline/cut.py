"""From an objective to this rank's stage of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quadriga.contracts import Stage


def shared_parameters(stages: Sequence[Stage]) -> dict[str, tuple[int, ...]]:
    """Return the trainable parameters that lie in several stages, and those stages, ascending."""
    holders: dict[str, list[int]] = {}
    for number, stage in enumerate(stages):
        for name, parameter in stage.named_parameters():
            if parameter.requires_grad:
                holders.setdefault(name, []).append(number)
    return {name: tuple(numbers) for name, numbers in holders.items() if len(numbers) > 1}


def materialise(stage: Stage, seed: int, device: torch.device) -> Stage:
    """Give a stage from the meta device memory and values; another one is returned as it is."""
    if not any(tensor.is_meta for tensor in stage.state_dict().values()):
        return stage.to(device)
    filled = stage.to_empty(device=device)
    filled.initialise(seed)
    return filled
