"""Linear warm-up, then a polynomial decay (power 2 in You et al. 2017, arXiv:1708.03888)."""

from __future__ import annotations

import math
from typing import final

from pydantic import Field

from quadriga.contracts import Progress, ScheduleConfig
from quadriga.schedules.warmup import share_after_warmup, warmup_factor


@final
class PolynomialConfig(ScheduleConfig):
    """Rise linearly over the warm-up, then fall as a power of what is left of the run."""

    power: float = Field(2.0, gt=0)
    """Exponent of the share of the run that is left."""
    final_factor: float = Field(0.0, ge=0, le=1)
    """Multiplier that the decay falls to."""

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        With the share u of the steps after the warm-up that is over: ``f + (1 - f) (1 - u)^p``.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        left = 1.0 - share_after_warmup(self, progress)
        return self.final_factor + (1.0 - self.final_factor) * math.pow(left, self.power)
