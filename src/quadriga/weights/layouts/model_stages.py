"""The published modular layout: a vision transformer as K stages, each under timm's own names.

A file is a dictionary with ``model_stages``, a list with the tensors of each stage, and optionally
``model``, the same tensors under timm's names of the whole model and again as ``stages.<i>.*``. The
blocks of each stage are numbered from 0; block j of stage i is block ``sum(depths[:i]) + j`` of the
whole. The first stage also has patch embedding, class token and positions, the last one the final
norm and the head.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from quadriga.errors import UserError
from quadriga.models.vit import ViTConfig
from quadriga.weights.fit import ENCODER, foreign_shape
from quadriga.weights.names.table import Tensors
from quadriga.weights.names.timm import LAYOUT

STAGES = "model_stages"
"""The key of the stages in a file."""
NOTES = "quadriga"
"""The key of the plain values that this project adds to a file."""

_ALIAS = re.compile(r"(.*\.)?stages\.\d+\..*")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_FIRST = ("patch_embed.", "cls_token", "pos_embed")
PATCHES = LAYOUT.marker
"""A tensor of the first stage under timm's name, and of every whole model."""


def depths_of(stages: Sequence[Mapping[str, Tensor]], source: str) -> tuple[int, ...]:
    """Return how many blocks each stage has.

    Args:
        stages: As for `join_stages`.
        source: Where the stages come from, for the error message.

    Raises:
        UserError: A stage's blocks are not numbered 0, 1, 2, ...
    """
    depths = []
    for position, stage in enumerate(stages):
        found = {int(match[1]) for name in stage if (match := _BLOCK.fullmatch(name))}
        if found != set(range(len(found))):
            raise UserError(
                f"{source}: the blocks of stage {position} must be numbered from 0 without a gap, "
                f"but are {sorted(found)}"
            )
        depths.append(len(found))
    return tuple(depths)


def join_stages(stages: Sequence[Mapping[str, Tensor]], source: str) -> Tensors:
    """Return the tensors of all stages under timm's names of the whole model.

    Args:
        stages: The tensors of each stage, with blocks numbered from 0 in each.
        source: Where the stages come from, for the error message.

    Raises:
        UserError: A stage's blocks are not numbered from 0, or two stages have the same tensor.
    """
    whole: Tensors = {}
    first = 0
    for position, (stage, depth) in enumerate(zip(stages, depths_of(stages, source), strict=True)):
        for name, tensor in stage.items():
            block = _BLOCK.fullmatch(name)
            target = f"blocks.{first + int(block[1])}.{block[2]}" if block else name
            if target in whole:
                raise UserError(f"{source}: stage {position} has {name}, as a stage before it has")
            whole[target] = tensor
        first += depth
    return whole


def cut_stages(whole: Mapping[str, Tensor], depths: Sequence[int]) -> tuple[Tensors, ...]:
    """Cut a model into stages; the inverse of `join_stages`.

    Args:
        whole: The model's tensors under timm's names.
        depths: Blocks of each stage; their sum is the model's depth.
    """
    starts = [sum(depths[:i]) for i in range(len(depths))]
    stages: tuple[Tensors, ...] = tuple({} for _ in depths)
    for name, tensor in whole.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            stages[0 if name.startswith(_FIRST) else -1][name] = tensor
            continue
        number = int(block[1])
        at = next(
            i for i, (s, d) in enumerate(zip(starts, depths, strict=True)) if s <= number < s + d
        )
        stages[at][f"blocks.{number - starts[at]}.{block[2]}"] = tensor
    return stages


def without_aliases(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors without their aliases ``stages.<i>.*``."""
    return {name: tensor for name, tensor in tensors.items() if not _ALIAS.fullmatch(name)}


def own_names(tensors: Mapping[str, Tensor], source: str) -> Tensors:
    """Rename tensors from timm's names to those of a supervised objective, in its shapes.

    Args:
        tensors: Tensors of a whole model or of a stage; a stage's blocks keep their numbers.
        source: Where the tensors come from, for the error message.

    Returns:
        ``encoder.*`` and ``head.*``; the patch projection is a matrix (width, channels * patch_px
        * patch_px), and the table of positions (tokens, width) has no batch dimension.

    Raises:
        UserError: A name is not one of a vision transformer's.
    """
    named = {}
    for name, tensor in tensors.items():
        target = LAYOUT.table.ours(name)
        if target is None or not target.startswith((ENCODER, "head.")):
            raise UserError(
                f"{source} must hold a vision transformer's stages, but {name!r} is no part of one"
            )
        shaped = tensor
        if target.endswith("patch_projection.weight") and tensor.dim() == 4:
            shaped = tensor.flatten(1)
        elif target == f"{ENCODER}positions" and tensor.dim() == 3:
            shaped = tensor[0]
        named[target] = shaped
    return named


def foreign_names(tensors: Mapping[str, Tensor], model: ViTConfig) -> Tensors:
    """Rename tensors of a supervised objective to timm's names, in timm's shapes.

    Args:
        tensors: Tensors whose names start with ``encoder.`` or ``head.``.
        model: Gives the shape of the patch projection's kernel.

    Raises:
        UserError: timm has no name for a tensor.
    """
    return {foreign_name(name): foreign_shape(name, t, model) for name, t in tensors.items()}


def foreign_name(name: str) -> str:
    """Return timm's name for a tensor of a supervised objective.

    Raises:
        UserError: timm has no name for it.
    """
    target = LAYOUT.table.foreign(name)
    if target is None:
        raise UserError(f"the layout timm has no name for {name}; use the layout quadriga")
    return target


def document(whole: Mapping[str, Tensor], depths: Sequence[int]) -> dict[str, Any]:
    """Return the content of a file of this layout: ``model`` and ``model_stages``.

    Args:
        whole: The model's tensors under timm's names.
        depths: Blocks of each stage.
    """
    stages = cut_stages(whole, depths)
    aliases = {
        f"stages.{i}.{name}": tensor
        for i, stage in enumerate(stages)
        for name, tensor in stage.items()
    }
    return {"model": {**whole, **aliases}, STAGES: [dict(stage) for stage in stages]}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors, their names, types and shapes, whatever file they are in.

    Args:
        tensors: Tensors on any device.
    """
    summed = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        summed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        summed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return summed.hexdigest()
