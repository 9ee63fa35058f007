"""Growth: the whole target starts from the meta model at once, the baseline of modular training."""

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
    """The whole target model, trained from the weights of a trained meta model."""

    how: Growth = "function_preserving"
    """function_preserving: new blocks start as the identity. stacking: they start as copies."""

    def build(self, objective: ObjectiveConfig, model: ModelConfig) -> Objective:
        """Make the plain target model's objective.

        Raises:
            UserError: The depths do not add up to the model's, or the model cannot be cut.
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
        """Start every part of the target from the corresponding stage of the meta model.

        Raises:
            UserError: The source is not the meta model of this target.
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
