"""Which files of pipeline stages are written beside a run's checkpoints, as values."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from quadriga.config.base import Config


class StageFilesConfig(Config):
    """One file of weights per stage and epoch, in PipeDream's layout (`engine.stage_files`)."""

    folder: Path
    """Where the files are; it exists."""
    epoch_steps: int = Field(ge=1)
    """Optimizer steps of an epoch: there are files of the checkpoints at its multiples."""
    total_steps: int = Field(ge=1)
    """Optimizer steps of the run: there are files of its end as well."""
    modules: tuple[tuple[int, ...], ...]
    """By stage, the blocks of each of its modules."""

    def epoch_at(self, step: int) -> int | None:
        """Return which epoch, from 0, ends after `step` steps; None where none does."""
        if step % self.epoch_steps and step != self.total_steps:
            return None
        return -(-step // self.epoch_steps) - 1
