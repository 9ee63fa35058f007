"""What a rank of a pipeline does, one after the other: the words that schedules are written in.

A schedule is a pure generator of actions of one stage. It knows stages, steps and micro-batches,
and neither tensors nor processes: the executor carries its actions out, the planner times them,
the tests count them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from quadriga.errors import UserError


class Forward(NamedTuple):
    """Compute a micro-batch's forward pass, and send its output on."""

    step: int
    micro: int


class Backward(NamedTuple):
    """Compute a micro-batch's backward pass, and send the gradient of its input back."""

    step: int
    micro: int


class Update(NamedTuple):
    """The gradient of a step is complete on this stage: its update may begin."""

    step: int


class Wait(NamedTuple):
    """The update of a step must be finished: what follows uses its weights, or its outcome."""

    step: int


Action = Forward | Backward | Update | Wait

GoesOn = Callable[[int], bool]
"""Asked before the first forward pass of a step, in order: whether the step is made. After the
first False the stage finishes what is in flight. All stages get the same answers."""


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
        """Forward passes that this stage is ahead of its backward passes under 1F1B."""
        return self.stages - 1 - self.stage


class Schedule(ABC):
    """An order of forward and backward passes; one file each."""

    name: ClassVar[str]
    delay: ClassVar[int] = 0
    """How many steps late the gradients are applied."""

    def check(self, stages: int, micro_batches: int) -> None:
        """Check that the schedule can run.

        Raises:
            UserError: It needs more micro-batches.
        """
        return None

    @abstractmethod
    def actions(self, place: Place, first: int, goes_on: GoesOn) -> Iterator[Action]:
        """Yield the actions of one stage.

        Args:
            place: Which stage of how many.
            first: The first step of the segment; the pipeline is empty before it.
            goes_on: Whether a step is made.
        """

    @abstractmethod
    def in_flight(self, place: Place) -> int:
        """Return the most micro-batches whose activations a stage holds at once."""

    def version(self, step: int) -> int:
        """Return how many updates have been made to the weights that a step is computed with."""
        return step


class FlushedSchedule(Schedule):
    """A schedule whose pipeline is empty between steps: each step ends with its own update."""

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
