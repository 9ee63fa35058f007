"""The layer that a parameter belongs to, from its global name alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quadriga.errors import UserError

BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
"""A parameter of block number i of a stack."""

EMBEDDINGS = ("embed", "patch_projection", "position", "class_token", "mask_token", "register")
"""Parts of the names of what lies below the first block."""


def layer_ids(names: Sequence[str]) -> tuple[list[int], int]:
    """Number the layers from the input to the head.

    The layers are those of the first stack of blocks: embeddings are layer 0, ``blocks.<i>`` is
    layer i + 1, and everything else, a decoder with blocks of its own included, is the head.

    Args:
        names: Global names of parameters, in the order of the model.

    Returns:
        One layer per name, and the number L of blocks; the head is layer L + 1.

    Raises:
        UserError: There is no block among the names.
    """
    found = [BLOCK.search(name) for name in names]
    stacks = [
        name[: match.start()] for name, match in zip(names, found, strict=True) if match is not None
    ]
    if not stacks:
        raise UserError(
            "optim.layer_decay must be 1 for a model without parameters named blocks.<i>, "
            "but is lower; remove it"
        )
    first, others = stacks[0], {f"{stack}." for stack in stacks if stack and stack != stacks[0]}
    layers = 1 + max(
        int(match[1])
        for name, match in zip(names, found, strict=True)
        if match is not None and name[: match.start()] == first
    )

    def layer_of(name: str, match: re.Match[str] | None) -> int:
        if match is not None and name[: match.start()] == first:
            return int(match[1]) + 1
        beyond = match is not None or any(name.startswith(stack) for stack in others)
        below = any(part in name for part in EMBEDDINGS)
        return 0 if below and not beyond else layers + 1

    return [layer_of(name, match) for name, match in zip(names, found, strict=True)], layers
