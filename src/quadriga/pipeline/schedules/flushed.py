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

from quadriga.pipeline.schedules.actions import Action, Backward, FlushedSchedule, Forward, Place


@final
class GPipe(FlushedSchedule):
    """All forward, all backward, one update, with a flush."""

    name = "gpipe"

    def passes(self, place: Place, step: int) -> Iterator[Action]:
        """Yield the passes of one step; see `FlushedSchedule.passes`."""
        for micro in range(place.micro_batches):
            yield Forward(step, micro)
        for micro in range(place.micro_batches):
            yield Backward(step, micro)

    def in_flight(self, place: Place) -> int:
        """Return the number of micro-batches: all are held."""
        return place.micro_batches
