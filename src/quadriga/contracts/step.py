"""The numbers that an optimizer step follows from."""

from __future__ import annotations

from dataclasses import dataclass

from quadriga.contracts.objective import Progress


@dataclass(frozen=True)
class StepPlan:
    """The numbers of a run's steps, which follow from its config, its data and its ranks."""

    total_steps: int
    batch_size: int
    """Samples of one optimizer step, over all readers and micro-batches."""
    accumulate: int
    """Micro-batches of one reader in a step."""
    world_size: int
    """Readers of the samples: the ranks, or the copies of a model that lies on several."""
    dataset_size: int
    lr: float
    """Peak learning rate at the actual batch size."""

    def progress(self, step: int) -> Progress:
        """Return the progress at a step."""
        return Progress(step, self.total_steps, self.batch_size, self.dataset_size)
