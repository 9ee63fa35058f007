"""Plain model parallelism: one micro-batch at a time goes through all stages and back.

    stage 0   F0                      B0 F1
    stage 1      F0             B0          F1
    stage 2         F0    B0                   F1      (a backward pass takes two places)

Only one stage works at a time: a step of m micro-batches on d stages takes m * d * (F + B).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from quadriga.pipeline.schedules.actions import Action, Backward, FlushedSchedule, Forward, Place


@final
class Sequential(FlushedSchedule):
    """Forward and backward of each micro-batch before the next one starts."""

    name = "sequential"

    def passes(self, place: Place, step: int) -> Iterator[Action]:
        """Yield the passes of one step; see `FlushedSchedule.passes`."""
        for micro in range(place.micro_batches):
            yield Forward(step, micro)
            yield Backward(step, micro)

    def in_flight(self, place: Place) -> int:
        """Return 1: each micro-batch ends before the next begins."""
        return 1
