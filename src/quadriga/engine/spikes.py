"""Losses that stand out from those before them."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import final

from quadriga.engine.health_config import HealthConfig

SMALLEST_DEVIATION = 1e-3
"""Share of the median that the median deviation is taken to be at least: where a loss hardly
moves, its last digits are no news."""


@final
@dataclass(frozen=True)
class Spike:
    """A loss that stands out."""

    step: int
    """Finished optimizer steps."""
    loss: float
    median: float
    """Median of the losses before it."""
    deviation: float
    """Median absolute deviation of the losses before it."""
    losses: int
    """How many losses that were."""

    def __str__(self) -> str:
        """Return the sentence that says so."""
        return (
            f"the loss of step {self.step} is {self.loss:.4g}, a spike: the median of the "
            f"{self.losses} losses before it is {self.median:.4g}, their median deviation "
            f"{self.deviation:.2g}"
        )


@final
class SpikeDetector:
    """Compares each loss with the median and the median absolute deviation of those before it.

    Both are blind to a few outliers, so that a spike does not hide the next one. Consecutive
    losses above the limit are one spike.
    """

    def __init__(self, config: HealthConfig) -> None:
        """Take ``window`` and ``spike_factor``."""
        self._factor = config.spike_factor
        self._needed = max(2, config.window // 4)
        self._before: deque[float] = deque(maxlen=config.window)
        self._above = False

    def spike(self, step: int, loss: float) -> Spike | None:
        """Take the next loss and return what stands out.

        Args:
            step: Finished optimizer steps.
            loss: Its loss; one that is not finite is passed over, it is not for this to judge.
        """
        if self._factor is None or not math.isfinite(loss):
            return None
        found = None
        if len(self._before) >= self._needed:
            median = statistics.median(self._before)
            deviation = statistics.median(abs(value - median) for value in self._before)
            deviation = max(deviation, SMALLEST_DEVIATION * abs(median))
            above = loss > median + self._factor * deviation
            if above and not self._above:
                found = Spike(step, loss, median, deviation, len(self._before))
            self._above = above
        self._before.append(loss)
        return found

    def see(self, step: int, loss: float) -> str | None:
        """Take the next loss and return the sentence on a spike, if it is one."""
        found = self.spike(step, loss)
        return None if found is None else str(found)
