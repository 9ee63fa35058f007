"""Batch and steps of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """Batch and steps of a run."""

    batch: int
    """Samples of an optimizer step, over all processes."""
    ranks: int
    """Processes."""
    accumulate: int
    """Iterations of an optimizer step."""
    epoch_steps: int
    """Optimizer steps of an epoch."""
    total_steps: int
    """Optimizer steps of the run."""
    notes: tuple[str, ...] = ()
    """What is to be said about them."""

    @property
    def iteration(self) -> int | None:
        """Samples of an iteration over all processes; None if iterations differ."""
        parts = self.accumulate * self.ranks
        return None if self.batch % parts else self.batch // self.accumulate
