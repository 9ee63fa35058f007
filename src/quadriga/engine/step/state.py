"""The tensors of an executor's state, copied in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


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
