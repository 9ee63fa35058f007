"""The whole target grown out of the meta model at once: what modular training competes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from quadriga.contracts import (
    ModelConfig,
    ModularConfig,
    Objective,
    ObjectiveConfig,
    Splittable,
    WeightSource,
)
from quadriga.modular.incubate import Growth, start_module
from quadriga.modular.meta import check_meta, fill_meta
from quadriga.modular.parts import (
    check_cut,
    classes_of,
    cut_meta,
    depth_of,
    meta_depths_of,
)


@final
class GrowthConfig(ModularConfig):
    """The target model, all of it trained, started from a trained meta model."""

    depths: tuple[int, ...]
    """Blocks of the target that grow out of each stage of the meta model."""
    meta: str
    """The trained meta model: a run, a checkpoint, or a file in the published layout."""
    meta_depths: tuple[int, ...] | None = None
    """Blocks of each stage of the meta model; none: one each."""
    how: Growth = "function_preserving"
    """function_preserving: the new blocks do nothing at first. stacking: they are copies."""

    def build(self, objective: ObjectiveConfig, model: ModelConfig) -> Objective:
        """Make the plain target.

        Raises:
            UserError: The depths do not make up the model, or it cannot be cut.
        """
        check_cut(self.depths, depth_of(model))
        with torch.device("meta"):
            cut_meta(objective, model, meta_depths_of(self.depths, self.meta_depths))
        return objective.build(model)

    def sources(self) -> tuple[tuple[str, str], ...]:
        """Return the meta model's path."""
        return (("modular.meta", self.meta),)

    def check_sources(
        self,
        objective: ObjectiveConfig,
        model: ModelConfig,
        runs: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Check a meta model that is still to be trained.

        Raises:
            UserError: It will be another one than this target's.
        """
        depths = meta_depths_of(self.depths, self.meta_depths)
        check_meta(model, depths, classes_of(objective), self.meta, runs[0])

    def fill(
        self,
        built: Objective,
        objective: ObjectiveConfig,
        model: ModelConfig,
        sources: Sequence[WeightSource],
    ) -> str:
        """Start every part of the target from the meta model's stage in its place.

        Raises:
            UserError: The meta model is another one.
        """
        assert isinstance(built, Splittable)
        depths = meta_depths_of(self.depths, self.meta_depths)
        with torch.device("meta"):
            shapes = cut_meta(objective, model, depths).stages
        meta = [stage.to_empty(device="cpu") for stage in shapes]
        told = fill_meta(meta, model, depths, classes_of(objective), sources[0])
        for index, part in enumerate(built.stages(self.depths)):
            start_module(self.how, part, meta[index], index, self.depths, depths)
        return f"grown ({self.how}) from {told}"
