"""1F1B with a flush (PipeDream-Flush; Narayanan et al., ICML 2021): one forward, one backward.

    stage 0   F0 F1 F2       B0 F3 B1    B2    B3 | U
    stage 1      F0 F1    B0 F2 B1 F3 B2    B3    | U
    stage 2         F0 B0 F1 B1 F2 B2 F3 B3       | U

The bubble is that of GPipe, (d - 1) / (m + d - 1), but stage s of d holds the activations of at
most d - s micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from quadriga.pipeline.schedules.actions import Action, Backward, FlushedSchedule, Forward, Place


@final
class OneFOneB(FlushedSchedule):
    """One forward, one backward; the pipeline is empty at the end of each step."""

    name = "1f1b"

    def passes(self, place: Place, step: int) -> Iterator[Action]:
        """Yield the passes of one step; see `FlushedSchedule.passes`."""
        ahead = min(place.warmup, place.micro_batches)
        for micro in range(ahead):
            yield Forward(step, micro)
        for micro in range(place.micro_batches):
            if micro + ahead < place.micro_batches:
                yield Forward(step, micro + ahead)
            yield Backward(step, micro)

    def in_flight(self, place: Place) -> int:
        """Return how far the forward passes run ahead, and the one under way."""
        return min(place.warmup + 1, place.micro_batches)
