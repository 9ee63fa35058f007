"""The tensors of an executor's state: the optimizer's by name, and all of them copied in place."""

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

    A parameter has none before its first step.

    Args:
        optimizer: Whose state it is; the keys are its own.
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
    """Give state to the parameters that a checkpoint has state of, and take it from the others.

    What was made is to be overwritten. Norms of shards are summed over the ranks meanwhile: those
    that share a parameter call it together.

    Args:
        optimizer: None of its parameters has a gradient.
        named: Its parameters by global name.
        names: Those of the checkpoint's tensors; of ``optimizer.PARAMETER.KEY`` the parameter
            counts alone.
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
    """Leave out the optimizer state of parameters whose ``step`` is 0.

    Until revision 7f9c01b every parameter had state ahead of its first step, all of it zero. Torch
    has none then, and begins not always at zero: NAdam's product of momenta begins at one. State
    without a ``step`` stays; a buffer of zeros is what its optimizers begin with.
    """
    begins = {
        name.rpartition(".")[0]
        for name, value in state.items()
        if name.startswith(OPTIMIZER) and name.endswith(".step") and not value.any()
    }
    return {name: value for name, value in state.items() if name.rpartition(".")[0] not in begins}


@torch.no_grad()
def copy_state(own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Copy `state` into the live tensors `own`; those that were read in place stay.

    Raises:
        ValueError: The names are not the same on both sides.
    """
    if own.keys() != state.keys():
        names = sorted(own.keys() ^ state.keys())
        raise ValueError(f"the states differ in {len(names)} names, the first is {names[0]}")
    for name, value in state.items():
        if own[name] is not value:
            own[name].copy_(value)
