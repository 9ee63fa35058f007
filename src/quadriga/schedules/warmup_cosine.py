"""Linear warm-up, then a half cosine (Loshchilov and Hutter, SGDR, ICLR 2017, arXiv:1608.03983)."""

from __future__ import annotations

import math
from typing import final

from pydantic import Field

from quadriga.contracts import Progress, ScheduleConfig
from quadriga.schedules.warmup import share_of_decay, warmup_factor


@final
class WarmupCosineConfig(ScheduleConfig):
    """Rise linearly over the warm-up, then fall along a half cosine, step by step."""

    final_factor: float = Field(0.0, ge=0, le=1)
    """Multiplier that the cosine falls to: an absolute least rate over the peak learning rate."""
    under_warmup: bool = False
    """Whether the cosine begins with the run, as DeiT's, and not where the warm-up ends; the rate
    then falls from the peak to the cosine at the end of the warm-up."""

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        With the share u of the decay that is over: ``f + (1 - f) (1 + cos(pi u)) / 2``.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        cosine = 0.5 * (1.0 + math.cos(math.pi * share_of_decay(self, progress, self.under_warmup)))
        return self.final_factor + (1.0 - self.final_factor) * cosine
