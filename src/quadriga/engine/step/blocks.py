"""The blocks of an objective: the unit of sharding, recomputation and compilation."""

from __future__ import annotations

from torch import nn


def blocks_of(objective: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the members of every list called ``blocks``, by their full names.

    The name is the convention of this project's models: ``encoder.blocks.0``. Layer-wise decay
    counts by it, and stages are cut by it. A stage's blocks are in an `nn.ModuleDict` under their
    numbers in the whole model.
    """
    return [
        (f"{name}.{number}", block)
        for name, module in objective.named_modules()
        if isinstance(module, nn.ModuleList | nn.ModuleDict) and name.rpartition(".")[2] == "blocks"
        for number, block in module.named_children()
    ]
