"""GPipe (Huang et al., NeurIPS 2019): all forward passes of a step, then all backward passes.

    stage 0   F0 F1 F2 F3             B0    B1    B2    B3 | U
    stage 1      F0 F1 F2 F3    B0    B1    B2    B3       | U
    stage 2         F0 F1 F2 F3 B0 ...

The bubble is (d - 1) / (m + d - 1) of the time; every stage holds the activations of all m
micro-batches. Backward passes go in the order of the forward passes, so that gradients are summed
in the same order as by the other schedules.
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
class GPipe(Schedule):
    """All forward, all backward, one update, with a flush."""

    name = "gpipe"

    def actions(self, place: Place, first: int, goes_on: GoesOn) -> Iterator[Action]:
        """Yield the actions of one stage; see `Schedule.actions`."""
        step = first
        while goes_on(step):
            for micro in range(place.micro_batches):
                yield Forward(step, micro)
            for micro in range(place.micro_batches):
                yield Backward(step, micro)
            yield Update(step)
            yield Wait(step)
            step += 1

    def in_flight(self, place: Place) -> int:
        """Return the number of micro-batches: all are held."""
        return place.micro_batches
