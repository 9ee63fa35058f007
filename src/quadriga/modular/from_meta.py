"""What starts from a trained meta model has in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

from quadriga.contracts import ModelConfig, ModularConfig, ObjectiveConfig
from quadriga.modular.parts.cut import classes_of, meta_depths_of
from quadriga.modular.parts.meta import check_meta


class FromMetaConfig(ModularConfig, ABC):
    """A target cut into parts, and the meta model with a stage in the place of each."""

    depths: tuple[int, ...]
    """Blocks of each part of the target model; they add up to `model.depth`."""
    meta: str
    """The trained meta model: a run, a checkpoint, or a file in the published layout."""
    meta_depths: tuple[int, ...] | None = None
    """Blocks of each stage of the meta model; none: one each."""

    def meta_cut(self) -> tuple[int, ...]:
        """Return the blocks of each stage of the meta model.

        Raises:
            UserError: There are not as many stages as parts, or one has no block.
        """
        return meta_depths_of(self.depths, self.meta_depths)

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
        check_meta(model, self.meta_cut(), classes_of(objective), self.meta, runs[0])
