"""The whole target grown out of the meta model at once: what modular training competes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from quadriga.contracts import ModelConfig, Objective, ObjectiveConfig, Splittable, WeightSource
from quadriga.modular.parts.cut import check_cut, classes_of, cut_meta, depth_of
from quadriga.modular.parts.meta import FromMetaConfig, fill_meta
from quadriga.modular.parts.start import Growth, start_module


@final
class GrowthConfig(FromMetaConfig):
    """The target model, all of it trained, started from a trained meta model."""

    how: Growth = "function_preserving"
    """function_preserving: the new blocks do nothing at first. stacking: they are copies."""

    def build(self, objective: ObjectiveConfig, model: ModelConfig) -> Objective:
        """Make the plain target.

        Raises:
            UserError: The depths do not make up the model, or it cannot be cut.
        """
        check_cut(self.depths, depth_of(model))
        with torch.device("meta"):
            cut_meta(objective, model, self.meta_cut())
        return objective.build(model)

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
        depths = self.meta_cut()
        with torch.device("meta"):
            shapes = cut_meta(objective, model, depths).stages
        meta = [stage.to_empty(device="cpu") for stage in shapes]
        told = fill_meta(meta, model, depths, classes_of(objective), sources[0])
        for index, part in enumerate(built.stages(self.depths)):
            start_module(self.how, part, meta[index], index, self.depths, depths)
        return f"grown ({self.how}) from {told}"
