"""The initialisation of a target module from the corresponding stage of the meta model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from quadriga.contracts import Stage
from quadriga.errors import UserError
from quadriga.models.parts.transformer import zero_branches
from quadriga.modular.parts.cut import block_of, blocks_in, copy_into, offset, renumbered

Start = Literal["random", "inherit", "function_preserving"]
"""Weights that a module takes from the meta model. random: none; inherit: those outside blocks
(embedding, norm, classifier); function_preserving: all, and further blocks start as the identity
(Chen et al., "Net2Net", 2016)."""

Growth = Literal["function_preserving", "stacking"]
"""How the whole target grows from the meta model. function_preserving: as for `Start`; stacking:
the meta model's blocks are repeated (Gong et al., "Efficient training of BERT by progressively
stacking", 2019)."""


def start_module(
    start: Start | Growth,
    module: Stage,
    meta: Stage,
    index: int,
    depths: Sequence[int],
    meta_depths: Sequence[int],
) -> None:
    """Fill an initialised module in place.

    Args:
        start: Which weights the module takes.
        module: A stage of the target.
        meta: The corresponding stage of the meta model, with its weights.
        index: Number of the stage, from 0.
        depths: Blocks of each stage of the target.
        meta_depths: Blocks of each stage of the meta model.

    Raises:
        UserError: The module has fewer blocks than `meta`, or blocks that cannot be the identity.
    """
    if start == "random":
        return
    have, had = depths[index], meta_depths[index]
    shift = offset(depths, index) - offset(meta_depths, index)
    tensors = meta.state_dict()
    outside = {name: t for name, t in tensors.items() if block_of(name) is None}
    copy_into(module, outside)
    if start == "inherit":
        return
    if have < had:
        raise UserError(
            f"modular.depths must give module {index} at least the {had} blocks of the meta "
            f"model's stage, but give it {have}; raise it or use modular.initialise=inherit"
        )
    for repeat in range(have // had + 1 if start == "stacking" else 1):
        moved = {
            renumbered(name, shift + repeat * had): tensor
            for name, tensor in tensors.items()
            if name not in outside
        }
        own = module.state_dict()
        copy_into(module, {name: tensor for name, tensor in moved.items() if name in own})
    if start == "function_preserving":
        first = offset(depths, index) + had
        new = [block for number, block in blocks_in(module).items() if number >= first]
        try:
            zero_branches(new)
        except TypeError as error:
            raise UserError(
                f"modular.initialise must be inherit or random for blocks that cannot start as the "
                f"identity ({error}), but is function_preserving"
            ) from error
