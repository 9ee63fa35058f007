"""The contents of a source of weights, a meta model or modules, under this project's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from quadriga.contracts import ModelConfig, WeightSource
from quadriga.errors import UserError
from quadriga.modular.parts.cut import meta_depths_of, offset, renumbered
from quadriga.weights.layouts.model_stages import (
    PATCHES,
    depths_of,
    digest,
    join_stages,
    own_names,
)
from quadriga.weights.prefixes import prefixes_of, take

LIVE, META = "live.", "meta."
"""Prefixes of a hybrid's tensor names: ``live.2.NAME`` is ``NAME`` of the target model, in its
module 2; ``meta.0.NAME`` is ``NAME`` of the meta model, in its stage 0."""

_OWN_PATCHES = "encoder.patch_projection.weight"
_FACTS = (
    "kind",
    "image_px",
    "patch_px",
    "channels",
    "width",
    "heads",
    "mlp_ratio",
    "positions",
    "pool",
    "class_token",
    "registers",
    "qkv_bias",
    "norm_eps",
)
"""Fields of a model that a module, its meta model and the target have in common."""


@dataclass(frozen=True)
class SourceModule:
    """One trained module, and its meta model and cut as far as they are known."""

    path: Path
    index: int
    depths: tuple[int, ...] | None
    """Blocks of each module of the target; None if the file does not record them."""
    tensors: Mapping[str, Tensor]
    """Tensors under their names in the target model."""
    meta: Mapping[int | None, str]
    """Stage of the meta model -> digest of its tensors, for the stages that the source has; key
    None -> digest of the whole meta model. For a module that is not yet trained, the only key is
    None, and its value is the path of the meta model."""
    facts: Mapping[str, Any]
    """Known fields of the model, and ``classes``."""


def whole_model(source: WeightSource) -> dict[str, Tensor]:
    """Return the tensors of a whole model under this project's names."""
    name = str(source.path)
    if source.stages:
        return own_names(join_stages(source.stages, name), name)
    for marker in (PATCHES, _OWN_PATCHES):
        if prefixes := prefixes_of(source.tensors, marker):
            tensors = take(source.tensors, prefixes, Path(name)).tensors
            return own_names(tensors, name) if marker == PATCHES else dict(tensors)
    return dict(source.tensors)


def facts_of(source: WeightSource) -> dict[str, Any]:
    """Return the model's fields that a source records, and ``classes``."""
    if source.config is not None:
        classes = (source.config.get("objective") or {}).get("classes")
        return {**(source.config.get("model") or {}), "classes": classes}
    return dict((source.notes or {}).get("model") or {})


def to_come(path: str, run: Mapping[str, Any]) -> WeightSource:
    """Return a source without tensors, for a run that is not yet trained.

    Args:
        path: Future path of the run.
        run: The values of its config.
    """
    return WeightSource(path=Path(path), tensors={}, config=run)


def check_facts(
    facts: Mapping[str, Any], model: ModelConfig, classes: int | None, who: str
) -> None:
    """Check that a part was made for models like the target.

    Args:
        facts: Known fields of the part's model.
        model: The target model.
        classes: Its number of classes; None if it has none.
        who: Name of the part in the error.

    Raises:
        UserError: A field differs.
    """
    own = {**model.as_dict(), "classes": classes}
    for name in (*_FACTS, "classes"):
        if facts.get(name) is not None and own.get(name) is not None and facts[name] != own[name]:
            path = "objective.classes" if name == "classes" else f"model.{name}"
            raise UserError(
                f"{who} was made for {path}={facts[name]}, but {path} is {own[name]} here; change "
                "it, or use another one"
            )


def source_modules(source: WeightSource, depths: Sequence[int]) -> list[SourceModule]:
    """Return the modules that a source holds.

    Args:
        source: A hybrid's run or checkpoint, or a file in the published layout.
        depths: Blocks of each module of the target; identifies the module if a file does not.

    Raises:
        UserError: The source holds no module, or the module cannot be identified.
    """
    if source.stages:
        return [_from_file(source, depths)]
    modular = (source.config or {}).get("modular") or {}
    if modular.get("kind") == "hybrid":
        return _from_run(source, modular)
    if any(name.startswith(LIVE) for name in source.tensors):
        raise UserError(
            f"modular.modules: {source.path} is a checkpoint without its run's config.json; name "
            "the run's folder"
        )
    raise UserError(
        f"modular.modules: {source.path} holds no module that was trained apart, but a whole "
        "model; name the runs that had modular.kind=hybrid"
    )


def _from_run(source: WeightSource, modular: Mapping[str, Any]) -> list[SourceModule]:
    depths = tuple(modular["depths"])
    meta_depths = meta_depths_of(depths, modular.get("meta_depths"))
    meta: dict[int | None, str] = {}
    whole: dict[str, Tensor] = {}
    for stage in range(len(depths)):
        begin = f"{META}{stage}."
        own = _below(source.tensors, begin)
        whole |= own
        shift = -offset(meta_depths, stage)
        meta[stage] = digest({renumbered(name, shift): t for name, t in own.items()})
    meta[None] = digest(whole)
    if not source.tensors:  # still to be trained
        meta = {None: str(modular["meta"])}
    return [
        SourceModule(
            source.path,
            index,
            depths,
            _below(source.tensors, f"{LIVE}{index}."),
            meta,
            facts_of(source),
        )
        for index in modular["live"]
    ]


def _below(tensors: Mapping[str, Tensor], begin: str) -> dict[str, Tensor]:
    return {n.removeprefix(begin): t for n, t in tensors.items() if n.startswith(begin)}


def _from_file(source: WeightSource, depths: Sequence[int]) -> SourceModule:
    name, notes = str(source.path), source.notes or {}
    found = depths_of(source.stages, name)
    if len(found) != len(depths):
        raise UserError(
            f"modular.modules: {name} has {len(found)} stages, but modular.depths are "
            f"{list(depths)}; name modules that were cut like these"
        )
    index = notes.get("index")
    if index is None:
        index = _odd_one_out(found, depths, name)
    if not isinstance(index, int) or not 0 <= index < len(found):
        raise UserError(
            f"modular.modules: {name} must say which of its {len(found)} stages was trained, from "
            f"0 on, but says {index!r}; write it again"
        )
    shift = offset(depths, index)
    tensors = own_names(source.stages[index], name)
    own = {renumbered(key, shift): tensor for key, tensor in tensors.items()}
    meta: dict[int | None, str] = {
        stage: digest(own_names(tensors, name))
        for stage, tensors in enumerate(source.stages)
        if stage != index
    }
    if notes.get("meta") is not None:  # with two modules, their files share no meta stage
        meta[None] = str(notes["meta"])
    cut = notes.get("depths")
    full = tuple(cut) if cut is not None and sum(cut) == sum(depths) else None
    if found[index] != depths[index]:
        raise UserError(
            f"modular.modules: module {index} ({name}) has {found[index]} blocks, but "
            f"modular.depths are {list(depths)}; change them or name another module"
        )
    return SourceModule(source.path, index, full, own, meta, facts_of(source))


def _odd_one_out(found: Sequence[int], depths: Sequence[int], name: str) -> int:
    """Return the only stage with more than one block: the trained module.

    Raises:
        UserError: No stage, or several, have more than one block.
    """
    ones = [i for i, depth in enumerate(found) if depth > 1]
    if len(ones) != 1:
        raise UserError(
            f"modular.modules: {name} does not say which of its stages was trained (their depths "
            f"are {list(found)}); name the run, or a file that says so"
        )
    return ones[0]
