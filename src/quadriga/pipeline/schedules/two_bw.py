"""PipeDream-2BW (Narayanan et al., ICML 2021, section 3.1): 1F1B that never flushes.

    stage 0   F0 F1 F2       B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 B5 ...     m = 4: micro-batches 0 to 3
    stage 1      F0 F1    B0 F2 B1 F3 B2 F4 B3 F5 B4 F6 B5 ...        are step 0, 4 to 7 step 1,
    stage 2         F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 ...           with W(0) both

Step t is computed, forward and backward and on every stage, with W(max(t - 1, 0)):
W(t + 1) = W(t) - lr * grad f(W(t - 1)). The first forward pass of step t + 2 is the first use of
W(t + 1); it comes (m - d + 1) forward and backward passes after the last stage has ended step t.
The schedule waits for the update there, so the update (the sum over the replicas, the norm, the
tied gradients) overlaps with the passes in between. Two versions of the weights are enough while
m >= d - 1; the rule here is m >= d, as in the paper.

The first `flushed_steps` steps are a warm-up without delay, with a flush after each (1F1B). With k
such steps, step t >= k is computed with W(max(t - 1, k)).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from quadriga.pipeline.schedules.actions import (
    Action,
    Backward,
    Forward,
    GoesOn,
    Place,
    Schedule,
    Update,
    Wait,
    needs_micro_batches,
)
from quadriga.pipeline.schedules.flushed import OneFOneB


@final
class TwoBW(Schedule):
    """One forward, one backward, without a flush between steps; gradients are one step late."""

    name = "2bw"
    delay = 1

    def __init__(self, flushed_steps: int = 0) -> None:
        """Make a schedule whose first `flushed_steps` steps of the run have no delay."""
        self.flushed_steps = flushed_steps

    def check(self, stages: int, micro_batches: int) -> None:
        """Check that two versions of the weights are enough.

        Raises:
            UserError: The micro-batches are fewer than the stages.
        """
        if micro_batches < stages:
            needs_micro_batches(self.name, stages, micro_batches)

    def actions(self, place: Place, first: int, goes_on: GoesOn) -> Iterator[Action]:
        """Yield the actions of one stage; see `Schedule.actions`."""
        begun = first - 1

        def flushed(step: int) -> bool:
            nonlocal begun
            if step >= self.flushed_steps or not goes_on(step):
                return False
            begun = step
            return True

        yield from OneFOneB().actions(place, first, flushed)
        if begun + 1 >= self.flushed_steps:
            yield from _continuous(place, begun + 1, goes_on)

    def in_flight(self, place: Place) -> int:
        """Return the warm-up passes plus the current one."""
        return place.warmup + 1

    def version(self, step: int) -> int:
        """Return the weights' version of a step: one update behind after the warm-up."""
        if step <= self.flushed_steps:
            return step
        return step - 1


def _continuous(place: Place, first: int, goes_on: GoesOn) -> Iterator[Action]:
    ahead, backward, step = place.warmup, 0, first
    forward = 0
    while True:
        if step >= first + 2:
            yield Wait(step - 2)
        if not goes_on(step):
            break
        for micro in range(place.micro_batches):
            yield Forward(step, micro)
            forward += 1
            if forward > ahead:
                yield from _backward(place, first, backward)
                backward += 1
        step += 1
    while backward < forward:
        yield from _backward(place, first, backward)
        backward += 1
    if step > first:
        yield Wait(step - 1)


def _backward(place: Place, first: int, number: int) -> Iterator[Action]:
    step, micro = divmod(number, place.micro_batches)
    yield Backward(first + step, micro)
    if micro == place.micro_batches - 1:
        yield Update(first + step)
