"""Which files in the published modular layout are written beside a run's checkpoints, as values."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from quadriga.config.base import Config


class ModularFilesConfig(Config):
    """``checkpoint-N.pth``, ``finished_checkpoint.pth`` and ``log.txt`` (engine.modular_files)."""

    folder: Path
    """Where the files are; it exists."""
    phase: str
    """What the run is for, for the record: PT, MT, FT or E2E."""
    depths: tuple[int, ...]
    """Blocks of each stage of the model that is run; of a hybrid those of its live module and, in
    the other places, of the meta model."""
    target_depths: tuple[int, ...] | None = None
    """Of a hybrid, the whole target's cut; none where only the module's own is known."""
    epoch_steps: int = Field(ge=1)
    """Optimizer steps of an epoch: there are files of the checkpoints at its multiples."""
    total_steps: int = Field(ge=1)
    """Optimizer steps of the run, a multiple of `epoch_steps`."""
    keep: int = Field(2, ge=1)
    """How many of the newest ``checkpoint-N.pth`` stay."""

    def epoch_at(self, step: int) -> int | None:
        """Return which epoch, from 0, ends after `step` steps; None where none does."""
        return None if step % self.epoch_steps or step < 1 else step // self.epoch_steps - 1
