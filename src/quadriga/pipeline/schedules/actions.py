"""The actions of a pipeline stage, and the interface of the schedules that order them.

A schedule is a pure generator of one stage's actions. It depends on stages, steps and
micro-batches alone, not on tensors or processes: the executor carries the actions out, the planner
times them, the tests count them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from quadriga.errors import UserError


class Forward(NamedTuple):
    """Compute a micro-batch's forward pass, and send its output to the next stage."""

    step: int
    micro: int


class Backward(NamedTuple):
    """Compute a micro-batch's backward pass; send its input's gradient to the previous stage."""

    step: int
    micro: int


class Update(NamedTuple):
    """Begin the update of a step, whose gradient is complete on this stage."""

    step: int


class Wait(NamedTuple):
    """Finish the update of a step: the next actions need its weights or its outcome."""

    step: int


Action = Forward | Backward | Update | Wait

GoesOn = Callable[[int], bool]
"""Step -> whether it is made. Called before the first forward pass of each step, in order; after
the first False the stage finishes what is in flight. It must return the same on all stages."""


@dataclass(frozen=True)
class Place:
    """A stage's place in the pipeline."""

    stage: int
    """Position of the stage, from 0."""
    stages: int
    micro_batches: int
    """Micro-batches of a step that pass through this pipeline."""

    @property
    def warmup(self) -> int:
        """Forward passes by which 1F1B leads its backward passes on this stage."""
        return self.stages - 1 - self.stage


class Schedule(ABC):
    """An order of forward and backward passes; one file each."""

    name: ClassVar[str]
    delay: ClassVar[int] = 0
    """Number of steps by which gradients are applied late."""

    def check(self, stages: int, micro_batches: int) -> None:
        """Check that the schedule can run.

        Raises:
            UserError: The schedule needs more micro-batches.
        """
        return None

    @abstractmethod
    def actions(self, place: Place, first: int, goes_on: GoesOn) -> Iterator[Action]:
        """Yield the actions of one stage.

        Args:
            place: Which stage of how many.
            first: The first step of the segment; the pipeline is empty before it.
            goes_on: Step -> whether it is made.
        """

    @abstractmethod
    def in_flight(self, place: Place) -> int:
        """Return the maximum number of micro-batches whose activations a stage holds at once."""

    def version(self, step: int) -> int:
        """Return the version of the weights of a step: the number of updates made to them."""
        return step


class FlushedSchedule(Schedule):
    """A schedule that empties the pipeline after each step, and ends the step with its update."""

    @abstractmethod
    def passes(self, place: Place, step: int) -> Iterator[Action]:
        """Yield the forward and backward passes of one step of one stage."""

    def actions(self, place: Place, first: int, goes_on: GoesOn) -> Iterator[Action]:
        """Yield the actions of one stage; see `Schedule.actions`."""
        step = first
        while goes_on(step):
            yield from self.passes(place, step)
            yield Update(step)
            yield Wait(step)
            step += 1


def needs_micro_batches(name: str, stages: int, micro_batches: int) -> None:
    """Check that there are at least as many micro-batches as stages.

    Raises:
        UserError: There are fewer.
    """
    if micro_batches < stages:
        raise UserError(
            f"{name} needs at least as many micro-batches as stages ({stages}), but "
            f"train.accumulate is {micro_batches}; raise it or use executor.schedule=gpipe"
        )
