"""Plain model parallelism: one micro-batch at a time goes through all stages and back.

    stage 0   F0                      B0 F1
    stage 1      F0             B0          F1
    stage 2         F0    B0                   F1      (a backward pass takes two places)

Only one stage works at a time: a step of m micro-batches on d stages takes m * d * (F + B).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from quadriga.pipeline.actions import (
    Action,
    Backward,
    Forward,
    GoesOn,
    Place,
    Schedule,
    Update,
    Wait,
)


@final
class Sequential(Schedule):
    """Forward and backward of each micro-batch before the next one starts."""

    name = "sequential"

    def actions(self, place: Place, first: int, goes_on: GoesOn) -> Iterator[Action]:
        """Yield the actions of one stage; see `Schedule.actions`."""
        step = first
        while goes_on(step):
            for micro in range(place.micro_batches):
                yield Forward(step, micro)
                yield Backward(step, micro)
            yield Update(step)
            yield Wait(step)
            step += 1

    def in_flight(self, place: Place) -> int:
        """Return 1: each micro-batch ends before the next begins."""
        return 1
