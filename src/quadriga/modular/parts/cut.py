"""The cut of a model into modules, and the names of their tensors.

The same objective is built twice: over the whole target model, and over a *meta model* of the same
width with few blocks. Both are cut into the same number of stages. A module is a stage of the
target; its tensors keep their names in the target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quadriga.contracts import ModelConfig, Objective, ObjectiveConfig, Splittable, Stage
from quadriga.distributed.collectives import copy_whole
from quadriga.errors import UserError

_BLOCK = re.compile(r"((?:^|\.)blocks\.)(\d+)\.")
_NOISE = ("drop_path", "dropout", "attention_dropout")
"""Fields of models and methods that make a forward pass random."""


def depth_of(model: ModelConfig) -> int:
    """Return the number of blocks of a model.

    Raises:
        UserError: The model's kind has no blocks.
    """
    depth = getattr(model, "depth", None)
    if not isinstance(depth, int):
        raise UserError(
            f"modular training needs a model with blocks, but model.kind={model.kind()}"
        )
    return depth


def classes_of(objective: ObjectiveConfig) -> int | None:
    """Return the number of classes of a method; None if it has none."""
    classes = getattr(objective, "classes", None)
    return classes if isinstance(classes, int) else None


def check_cut(depths: Sequence[int], depth: int) -> None:
    """Check a list of modules' depths against the target model.

    Raises:
        UserError: There are fewer than two modules, one is empty, or the sum is not `depth`.
    """
    if len(depths) < 2:
        raise UserError(
            f"modular.depths must be two modules or more, but are {list(depths)}; cut the model, "
            "or train it whole, without modular"
        )
    if min(depths) < 1:
        raise UserError(
            f"modular.depths must be 1 block or more for each module, but are {list(depths)}; "
            "give every module a block"
        )
    if sum(depths) != depth:
        raise UserError(
            f"modular.depths must add up to model.depth={depth}, but {list(depths)} add up to "
            f"{sum(depths)}; change one of the two"
        )


@dataclass(frozen=True)
class Cut:
    """The stages of an objective, and properties of the whole objective."""

    stages: tuple[Stage, ...]
    metric_names: tuple[str, ...]
    tokens_per_sample: int | None


def cut(objective: ObjectiveConfig, model: ModelConfig, depths: Sequence[int]) -> Cut:
    """Return the stages of the objective over a model, on the current default device.

    Raises:
        UserError: The objective cannot be cut, has a teacher, or its stages share a tensor.
    """
    whole = objective.build(model)
    cls = type(whole)
    if not isinstance(whole, Splittable):
        raise UserError(
            f"modular must be none for objective.kind={objective.kind()}, which cannot be cut into "
            "stages"
        )
    if (cls.before_step, cls.after_step) != (Objective.before_step, Objective.after_step):
        raise UserError(
            f"modular must be none for objective.kind={objective.kind()}: it has a teacher"
        )
    stages = whole.stages(depths)
    seen: set[str] = set()
    for stage in stages:
        names = stage.state_dict().keys()
        if shared := seen & names:
            raise UserError(
                f"modular must be none for a model whose stages share tensors ({min(shared)}): "
                "modules that are trained apart would each have its own"
            )
        seen |= names
    return Cut(tuple(stages), whole.metric_names, whole.tokens_per_sample)


def cut_target(objective: ObjectiveConfig, model: ModelConfig, depths: Sequence[int]) -> Cut:
    """Return the target model's modules.

    Raises:
        UserError: As for `check_cut` and `cut`.
    """
    check_cut(depths, depth_of(model))
    return cut(objective, model, depths)


def meta_model(model: ModelConfig, depths: Sequence[int]) -> ModelConfig:
    """Return the config of the meta model: ``sum(depths)`` blocks, and no dropout."""
    fields = type(model).model_fields
    quiet = {name: 0.0 for name in _NOISE if name in fields}
    return model.override({"depth": sum(depths), **quiet})


def cut_meta(objective: ObjectiveConfig, model: ModelConfig, depths: Sequence[int]) -> Cut:
    """Return the stages of the meta model, whose forward passes are deterministic."""
    quiet = {name: 0.0 for name in _NOISE if name in type(objective).model_fields}
    return cut(objective.override(quiet) if quiet else objective, meta_model(model, depths), depths)


def meta_depths_of(depths: Sequence[int], meta_depths: Sequence[int] | None) -> tuple[int, ...]:
    """Return the blocks of each stage of the meta model; 1 each if `meta_depths` is None.

    Raises:
        UserError: Stages and modules differ in number, or a stage has no block.
    """
    if meta_depths is None:
        return (1,) * len(depths)
    if len(meta_depths) != len(depths) or min(meta_depths) < 1:
        raise UserError(
            f"modular.meta_depths must be 1 or more for each of the {len(depths)} modules, but are "
            f"{list(meta_depths)}; modular.depths are {list(depths)}"
        )
    return tuple(meta_depths)


def offset(depths: Sequence[int], index: int) -> int:
    """Return the number of the first block of stage `index`."""
    return sum(depths[:index])


def renumbered(name: str, shift: int) -> str:
    """Return a tensor's name with `shift` added to its block's number, if it has one."""
    return _BLOCK.sub(lambda match: f"{match[1]}{int(match[2]) + shift}.", name, count=1)


def block_of(name: str) -> int | None:
    """Return the number of the block that a tensor belongs to; None if it is outside blocks."""
    found = _BLOCK.search(name)
    return None if found is None else int(found[2])


def blocks_in(stage: nn.Module) -> dict[int, nn.Module]:
    """Return the blocks of a stage by their numbers in the whole model."""
    return {
        int(number): block
        for name, module in stage.named_modules()
        if isinstance(module, nn.ModuleDict) and name.rpartition(".")[2] == "blocks"
        for number, block in module.named_children()
    }


@torch.no_grad()
def copy_into(stage: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of a stage, by name; the caller has checked names and shapes."""
    own = stage.state_dict()
    for name, tensor in tensors.items():
        copy_whole(own[name], tensor)


def misfits(own: Mapping[str, Tensor], source: Mapping[str, Tensor], whose: str) -> str | None:
    """Return a short reason why tensors do not fill a part; None if names and shapes match.

    Args:
        own: Tensors of the part, by name.
        source: Tensors to fill it with, by name.
        whose: Name of the source in the reason.
    """
    missing = [name for name in own if name not in source]
    if missing:
        return f"{whose} lacks {missing[0]}" + (
            f" and {len(missing) - 1} more" if missing[1:] else ""
        )
    for name, tensor in own.items():
        if tensor.shape != source[name].shape:
            return (
                f"{name} is {tuple(source[name].shape)} in {whose}, but the model has "
                f"{tuple(tensor.shape)}"
            )
    foreign = [name for name in source if name not in own]
    if foreign:
        return f"{whose} has {foreign[0]}" + (
            f" and {len(foreign) - 1} more tensors that the model lacks"
            if foreign[1:]
            else ", which the model lacks"
        )
    return None
