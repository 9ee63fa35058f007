"""Linear warm-up, then half a hyperbolic tangent (Hsueh et al., WACV 2019, arXiv:1806.01593)."""

from __future__ import annotations

import math
from typing import final

from pydantic import Field, model_validator

from quadriga.contracts import Progress, ScheduleConfig
from quadriga.schedules.warmup import share_of_decay, warmup_factor


@final
class TanhConfig(ScheduleConfig):
    """Rise linearly over the warm-up, stay near the peak for long, then fall quickly."""

    lower: float = -6.0
    """Where the tangent begins; the further below 0, the longer the rate stays at the peak."""
    upper: float = 4.0
    """Where the tangent ends; the further above 0, the longer the rate stays at the bottom."""
    final_factor: float = Field(0.0, ge=0, le=1)
    """Multiplier that the curve falls to: an absolute least rate over the peak learning rate."""
    under_warmup: bool = False
    """Whether the curve begins with the run, as DeiT's, and not where the warm-up ends; the rate
    then falls from the peak to the curve at the end of the warm-up."""

    @model_validator(mode="after")
    def _upper_above_lower(self) -> TanhConfig:
        if self.upper <= self.lower:
            raise ValueError(f"upper must be above lower ({self.lower}), but is {self.upper}")
        return self

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        With the share u of the decay that is over and ``h(u) = tanh(L + (U - L) u)``, the paper's
        ``(1 - h) / 2`` stretched to reach both ends: ``f + (1 - f) (h(1) - h) / (h(1) - h(0))``.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        over = share_of_decay(self, progress, self.under_warmup)
        first, last = math.tanh(self.lower), math.tanh(self.upper)
        here = math.tanh(self.lower + (self.upper - self.lower) * over)
        return self.final_factor + (1.0 - self.final_factor) * (last - here) / (last - first)
