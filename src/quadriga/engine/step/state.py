"""Tensors of an executor's state: optimizer state by name, and copying in place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quadriga.optim.parts.groups import make_state

OPTIMIZER = "optimizer."


def optimizer_state(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the optimizer's live tensors as ``optimizer.PARAMETER.KEY``.

    A parameter has no state before its first step.

    Args:
        optimizer: The optimizer; it determines the keys.
        named: Its parameters by global name.
    """
    return {
        f"{OPTIMIZER}{name}.{key}": value
        for name, parameter in named.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def match_optimizer_state(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], names: Collection[str]
) -> None:
    """Create state for the parameters that a checkpoint has state of, and drop all other state.

    The values of created state are arbitrary. Creating it may sum norms of shards over the ranks,
    so all ranks that share a parameter call this function.

    Args:
        optimizer: None of its parameters has a gradient.
        named: Its parameters by global name.
        names: Names of the checkpoint's tensors; only PARAMETER of ``optimizer.PARAMETER.KEY`` is
            used.
    """
    begun = {
        name.removeprefix(OPTIMIZER).rpartition(".")[0]
        for name in names
        if name.startswith(OPTIMIZER)
    }
    for name, parameter in named.items():
        if name not in begun:
            optimizer.state.pop(parameter, None)
    missing = [p for name, p in named.items() if name in begun and not optimizer.state.get(p)]
    if missing:
        make_state(optimizer, missing)


def without_unbegun(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state without optimizer state of parameters whose ``step`` is 0.

    Until revision 7f9c01b every parameter had state before its first step, all of it zero. Torch
    has none then, and its initial state is not always zero: NAdam's product of momenta starts at
    one. State without a ``step`` is kept, because such optimizers start with a buffer of zeros.
    """
    begins = {
        name.rpartition(".")[0]
        for name, value in state.items()
        if name.startswith(OPTIMIZER) and name.endswith(".step") and not value.any()
    }
    return {name: value for name, value in state.items() if name.rpartition(".")[0] not in begins}


@torch.no_grad()
def copy_state(own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Copy `state` into the live tensors `own`; tensors that were read in place are not copied.

    Raises:
        ValueError: The names are not the same on both sides.
    """
    if own.keys() != state.keys():
        names = sorted(own.keys() ^ state.keys())
        raise ValueError(f"the states differ in {len(names)} names, the first is {names[0]}")
    for name, value in state.items():
        if own[name] is not value:
            own[name].copy_(value)
