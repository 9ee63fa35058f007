"""Linear warm-up, then a fall by a factor at each milestone (He et al., arXiv:1512.03385)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, final

from pydantic import Field, model_validator

from quadriga.contracts import Progress, ScheduleConfig
from quadriga.schedules.warmup import steps_of, warmup_factor


@final
class StepDecayConfig(ScheduleConfig):
    """Rise linearly over the warm-up, then stay, and fall by `gamma` at each milestone."""

    milestone_epochs: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Epochs, from the start of the run, at which the learning rate falls."""
    milestone_steps: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Optimizer steps at which the learning rate falls, instead of epochs."""
    gamma: float = Field(0.1, ge=0, le=1)
    """What the learning rate is multiplied by at each milestone."""

    @model_validator(mode="after")
    def _rising_milestones_of_one_unit(self) -> StepDecayConfig:
        if self.milestone_epochs and self.milestone_steps:
            raise ValueError(
                "milestone_steps must be empty when milestone_epochs is set "
                f"({list(self.milestone_epochs)}), but is {list(self.milestone_steps)}"
            )
        for name in ("milestone_epochs", "milestone_steps"):
            milestones = getattr(self, name)
            if any(late <= early for early, late in pairwise(milestones)):
                raise ValueError(f"{name} must rise from one to the next, but is {[*milestones]}")
        return self

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate: ``gamma^(milestones reached)``.

        A milestone inside the warm-up acts once the warm-up is over.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        in_epochs = tuple(steps_of(epochs, progress) for epochs in self.milestone_epochs)
        reached = sum(progress.step >= step for step in self.milestone_steps or in_epochs)
        return self.gamma**reached
