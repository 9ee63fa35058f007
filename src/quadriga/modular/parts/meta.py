"""The trained meta model: its config, its checks, and the loading of its stages."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

from quadriga.config.base import Depth, Location
from quadriga.contracts import ModelConfig, ModularConfig, ObjectiveConfig, Stage, WeightSource
from quadriga.errors import UserError
from quadriga.modular.parts.cut import block_of, classes_of, copy_into, meta_depths_of, misfits
from quadriga.modular.parts.sources import check_facts, facts_of, to_come, whole_model
from quadriga.weights.layouts.model_stages import digest


def check_meta(
    model: ModelConfig,
    depths: Sequence[int],
    classes: int | None,
    path: str,
    run: Mapping[str, Any] | None,
) -> None:
    """Check that a meta model that is not yet trained will suit this target.

    Args:
        model: The target model.
        depths: Blocks of each stage of the meta model.
        classes: Number of classes of the target; None if it has none.
        path: Future path of the meta model.
        run: The values of its run's config; None if unknown.

    Raises:
        UserError: The meta model will not suit this target.
    """
    if run is None:
        return
    who = f"the meta model {path}"
    kind = (run.get("modular") or {}).get("kind")
    if kind == "hybrid":
        raise UserError(f"{who} must be a whole model, but has modular.kind=hybrid; name another")
    check_facts(facts_of(to_come(path, run)), model, classes, who)
    blocks = (run.get("model") or {}).get("depth")
    if blocks is not None and blocks != sum(depths):
        raise UserError(
            f"{who} must have {sum(depths)} blocks (modular.meta_depths {list(depths)}), but has "
            f"{blocks}; name another one, or change modular.meta_depths"
        )


def fill_meta(
    stages: Sequence[Stage],
    model: ModelConfig,
    depths: Sequence[int],
    classes: int | None,
    source: WeightSource,
) -> str:
    """Copy a meta model's weights into its stages; on an error, nothing is copied.

    Args:
        stages: Stages of the meta model.
        model: The target model.
        depths: Blocks of each stage.
        classes: Number of classes of the target; None if it has none.
        source: The weights at ``modular.meta``.

    Returns:
        A short description of the source.

    Raises:
        UserError: The source is not the meta model of this target.
    """
    who = f"the meta model {source.path}"
    check_facts(facts_of(source), model, classes, who)
    tensors = whole_model(source)
    numbers = {number for name in tensors if (number := block_of(name)) is not None}
    if numbers != set(range(sum(depths))):
        raise UserError(
            f"{who} must have {sum(depths)} blocks (modular.meta_depths {list(depths)}), but has "
            f"{len(numbers)}; name another one, or change modular.meta_depths"
        )
    own = {name: tensor for stage in stages for name, tensor in stage.state_dict().items()}
    problem = misfits(own, tensors, who)
    if problem is not None:
        raise UserError(f"{problem}; name the meta model of this target")
    for stage in stages:
        names = stage.state_dict().keys()
        copy_into(stage, {name: tensors[name] for name in names})
    return f"the stages of {source.path} (SHA-256 {digest(tensors)[:16]})"


class FromMetaConfig(ModularConfig, ABC):
    """The base config of a target cut into parts and a meta model with one stage for each part."""

    depths: tuple[Depth, ...]
    """Blocks of each part of the target model; they add up to `model.depth`."""
    meta: Location[str]
    """The trained meta model: a run, a checkpoint, or a file in the published layout."""
    meta_depths: tuple[Depth, ...] | None = None
    """Blocks of each stage of the meta model; none: one each."""

    def meta_cut(self) -> tuple[int, ...]:
        """Return the blocks of each stage of the meta model.

        Raises:
            UserError: Stages and parts differ in number, or a stage has no block.
        """
        return meta_depths_of(self.depths, self.meta_depths)

    def sources(self) -> tuple[tuple[str, str], ...]:
        """Return the meta model's config key and path."""
        return (("modular.meta", self.meta),)

    def check_sources(
        self,
        objective: ObjectiveConfig,
        model: ModelConfig,
        runs: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Check a meta model that is not yet trained.

        Raises:
            UserError: The meta model will not suit this target.
        """
        check_meta(model, self.meta_cut(), classes_of(objective), self.meta, runs[0])
