"""Warm-up, a constant stretch, and a decay at the end (WSD: Hu et al., arXiv:2404.06395)."""

from __future__ import annotations

import math
from typing import Literal, final

from pydantic import Field

from quadriga.contracts import Progress, ScheduleConfig
from quadriga.schedules.warmup import warmup_factor, warmup_length


@final
class WarmupStableDecayConfig(ScheduleConfig):
    """Rise linearly over the warm-up, stay at the peak, and fall over the last steps."""

    decay_share: float = Field(0.2, ge=0, le=1)
    """Length of the decay as a share of the whole run; never longer than what the warm-up left."""
    decay: Literal["linear", "one_minus_sqrt"] = "one_minus_sqrt"
    """The form of the decay; ``one_minus_sqrt`` is that of Haegele et al. (arXiv:2405.18392)."""
    final_factor: float = Field(0.0, ge=0, le=1)
    """Multiplier that the decay falls to."""

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        With T steps in all and D of them for the decay, ``u = (t - (T - D)) / D`` from step
        T - D on: linear ``f + (1 - f) (1 - u)``; one_minus_sqrt ``f + (1 - f) (1 - sqrt(u))``.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        total = progress.total_steps
        length = min(round(self.decay_share * total), total - warmup_length(self, progress))
        since = progress.step - (total - length)
        if since <= 0:
            return 1.0
        over = min(1.0, since / length) if length > 0 else 1.0
        left = 1.0 - (over if self.decay == "linear" else math.sqrt(over))
        return self.final_factor + (1.0 - self.final_factor) * left
