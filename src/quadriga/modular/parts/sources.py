"""What a source of weights holds, in the names of this project: a meta model, or modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from quadriga.contracts import ModelConfig, WeightSource
from quadriga.errors import UserError
from quadriga.modular.parts.cut import meta_depths_of, offset, renumbered
from quadriga.weights.layouts.model_stages import depths_of, digest, join_stages, own_names

LIVE, META = "live.", "meta."
"""What the names of a hybrid's tensors start with: ``live.2.NAME`` is ``NAME`` in the target model,
of module 2; ``meta.0.NAME`` is ``NAME`` in the meta model, of its stage 0."""

_TIMM = "patch_embed.proj.weight"
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
    """One trained module, and what is known of where it grew up."""

    path: Path
    index: int
    depths: tuple[int, ...] | None
    """The target's cut; None where the file does not say."""
    tensors: Mapping[str, Tensor]
    """Under their names in the target model."""
    meta: Mapping[int | None, str]
    """Stage of the meta model -> digest of its tensors, as far as they are there; None: of all. Of
    a module that is still to be trained, None: where the meta model will be."""
    facts: Mapping[str, Any]
    """Fields of the model, as far as they are known, and ``classes``."""


def whole_model(source: WeightSource) -> dict[str, Tensor]:
    """Return the tensors of a whole model under this project's names."""
    name = str(source.path)
    if source.stages:
        return own_names(join_stages(source.stages, name), name)
    if _TIMM in source.tensors:
        return own_names(source.tensors, name)
    return dict(source.tensors)


def facts_of(source: WeightSource) -> dict[str, Any]:
    """Return what a source says of its model, and the number of classes."""
    if source.config is not None:
        classes = (source.config.get("objective") or {}).get("classes")
        return {**(source.config.get("model") or {}), "classes": classes}
    return dict((source.notes or {}).get("model") or {})


def to_come(path: str, run: Mapping[str, Any]) -> WeightSource:
    """Return what is known of a source that is still to be trained.

    Args:
        path: Where it will be.
        run: The values of its config.
    """
    return WeightSource(path=Path(path), tensors={}, config=run)


def check_facts(
    facts: Mapping[str, Any], model: ModelConfig, classes: int | None, who: str
) -> None:
    """Check that a part was made for models like the target.

    Args:
        facts: What is known of the part.
        model: The target model.
        classes: Its classes, where it has any.
        who: What to call the part.

    Raises:
        UserError: A fact differs.
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
        depths: The target's cut, which decides what is a module where a file does not say.

    Raises:
        UserError: It holds none, or does not say which.
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
    if notes.get("meta") is not None:  # of two stages, the files have none in common
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
    """Return the stage that has the target's depth while the others have the meta model's."""
    ones = [i for i, depth in enumerate(found) if depth > 1]
    if len(ones) != 1:
        raise UserError(
            f"modular.modules: {name} does not say which of its stages was trained (their depths "
            f"are {list(found)}); name the run, or a file that says so"
        )
    return ones[0]
