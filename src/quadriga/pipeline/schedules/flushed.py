"""The schedules that flush the pipeline after each step: GPipe, 1F1B and plain model parallelism.

GPipe (Huang et al., NeurIPS 2019): all forward passes of a step, then all backward passes.

    stage 0   F0 F1 F2 F3             B0    B1    B2    B3 | U
    stage 1      F0 F1 F2 F3    B0    B1    B2    B3       | U
    stage 2         F0 F1 F2 F3 B0 ...

The bubble is (d - 1) / (m + d - 1) of the time; every stage holds the activations of all m
micro-batches. Backward passes go in the order of the forward passes, so that gradients are summed
in the same order as by the other schedules.

1F1B with a flush (PipeDream-Flush; Narayanan et al., ICML 2021): one forward, one backward.

    stage 0   F0 F1 F2       B0 F3 B1    B2    B3 | U
    stage 1      F0 F1    B0 F2 B1 F3 B2    B3    | U
    stage 2         F0 B0 F1 B1 F2 B2 F3 B3       | U

The bubble is that of GPipe, (d - 1) / (m + d - 1), but stage s of d holds the activations of at
most d - s micro-batches.

Plain model parallelism: one micro-batch at a time goes through all stages and back.

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
class GPipe(FlushedSchedule):
    """All forward passes, then all backward passes, with a flush after each step."""

    name = "gpipe"

    def passes(self, place: Place, step: int) -> Iterator[Action]:
        """Yield the passes of one step; see `FlushedSchedule.passes`."""
        for micro in range(place.micro_batches):
            yield Forward(step, micro)
        for micro in range(place.micro_batches):
            yield Backward(step, micro)

    def in_flight(self, place: Place) -> int:
        """Return the number of micro-batches: a stage holds all of them."""
        return place.micro_batches


@final
class OneFOneB(FlushedSchedule):
    """One forward, one backward, with a flush after each step."""

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
        """Return the warm-up passes plus the current one, at most the number of micro-batches."""
        return min(place.warmup + 1, place.micro_batches)


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
