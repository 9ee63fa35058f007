"""Linear warm-up, then a straight line down (as in BERT: Devlin et al., arXiv:1810.04805)."""

from __future__ import annotations

from typing import final

from pydantic import Field

from quadriga.contracts import Progress, ScheduleConfig
from quadriga.schedules.warmup import share_after_warmup, warmup_factor


@final
class LinearConfig(ScheduleConfig):
    """Rise linearly over the warm-up, then fall linearly, step by step."""

    final_factor: float = Field(0.0, ge=0, le=1)
    """Multiplier that the line falls to."""

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        With the share u of the steps after the warm-up that is over: ``f + (1 - f) (1 - u)``.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        left = 1.0 - share_after_warmup(self, progress)
        return self.final_factor + (1.0 - self.final_factor) * left
