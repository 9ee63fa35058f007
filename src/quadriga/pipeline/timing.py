"""How long a pipeline's parts take, what comes of it, and bounds of it in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

from quadriga.pipeline.schedules.actions import Action, Backward, Forward


@final
@dataclass(frozen=True, kw_only=True)
class Times:
    """What a pipeline's parts take, in seconds (or in any other unit)."""

    forward: tuple[float, ...]
    """Forward pass of one micro-batch, per stage."""
    backward: tuple[float, ...]
    """Backward pass of one micro-batch, per stage, with what it recomputes."""
    transfer: tuple[float, ...] = ()
    """One micro-batch's way from a stage to the next, or back: one fewer than stages; none for
    no time at all."""
    beside: tuple[float, ...] = ()
    """The part of an update that needs no stage to stand still (reductions), per stage."""
    step: tuple[float, ...] = ()
    """The part of an update that a stage itself is busy with, when it waits, per stage."""
    is_deferred: bool = True
    """Whether the part beside goes on after `Update` has been told; otherwise the stage waits."""

    def __post_init__(self) -> None:
        """Check that the lengths agree.

        Raises:
            ValueError: They do not.
        """
        stages = len(self.forward)
        if not stages or len(self.backward) != stages:
            raise ValueError("there must be a forward and a backward time for each stage")
        for name, length in (("transfer", stages - 1), ("beside", stages), ("step", stages)):
            if len(getattr(self, name)) not in (0, length):
                raise ValueError(f"{name} must have {length} times or none")

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.forward)


Key = tuple[int, str, Action]


def key_of(stage: int, action: Action) -> Key:
    """Return what tells an action from all others: with its kind, which its equality ignores."""
    return stage, type(action).__name__, action


class Event(NamedTuple):
    """One action of one stage. An `Update` lasts from its gradient's end to the new weights."""

    stage: int
    action: Action
    start: float
    end: float


@final
@dataclass(frozen=True)
class Timeline:
    """What `simulate` found."""

    times: Times
    micro_batches: int
    steps: int
    version: tuple[int, ...]
    """Updates made to the weights that a step is computed with, per step."""
    events: tuple[Event, ...]
    """In each stage's own order; stage after stage."""
    in_flight: tuple[int, ...]
    """The most micro-batches that a stage held at once."""
    ends: dict[int, float] = field(repr=False)
    """When a step's update was done on all stages."""

    @property
    def seconds(self) -> float:
        """When the last action ends."""
        return max(event.end for event in self.events)

    @property
    def step_seconds(self) -> float:
        """Seconds of one step in the steady state: between the updates in the middle.

        The last step of a segment has nothing behind it and ends sooner; it counts only where
        there is no other.
        """
        if self.steps < 3:
            return self.seconds / self.steps
        first = (self.steps - 1) // 2
        return (self.ends[self.steps - 2] - self.ends[first - 1]) / (self.steps - 1 - first)

    @property
    def bubble(self) -> float:
        """Share of the stages' time in the steady state that no forward or backward pass takes."""
        times = self.times
        busy = self.micro_batches * (sum(times.forward) + sum(times.backward))
        return 1.0 - busy / (times.stages * self.step_seconds)

    def of_stage(self, stage: int) -> list[Event]:
        """Return one stage's events in order."""
        return [event for event in self.events if event.stage == stage]


def lower_bound(name: str, times: Times, micro_batches: int) -> float:
    """Return a number of seconds that no step is shorter than in the steady state.

    With F, B and x for a stage's passes and the transfer to the next one, d stages and m
    micro-batches: a flush takes at least what micro-batch 0 needs to reach a stage and return, and
    m passes there; a pipeline that never flushes has at most d - s micro-batches between stage s
    and the end, so one of them takes at least 1 / (d - s) of its way there and back.

    Args:
        name: The schedule's name.
        times: What the parts take.
        micro_batches: Micro-batches of a step.
    """
    d = times.stages
    ways = times.transfer or (0.0,) * (d - 1)
    steps = times.step or (0.0,) * d
    updates = [b + s for b, s in zip(times.beside or (0.0,) * d, steps, strict=True)]
    both = [f + b for f, b in zip(times.forward, times.backward, strict=True)]
    if name == "2bw":
        round_trips = [(sum(both[s:]) + 2 * sum(ways[s:])) / (d - s) for s in range(d)]
        busy = max(micro_batches * work + own for work, own in zip(both, steps, strict=True))
        return max(busy, micro_batches * max(round_trips))
    there = [sum(times.forward[:s]) + sum(ways[:s]) for s in range(d)]
    back = [sum(times.backward[:s]) + sum(ways[:s]) for s in range(d)]
    # When a stage can begin: its own weights are there, and micro-batch 0 is.
    begins = [max(updates[0] + way, own) for way, own in zip(there, updates, strict=True)]
    if name == "sequential":
        late = max(begin - way for begin, way in zip(begins, there, strict=True))
        return late + micro_batches * (sum(both) + 2 * sum(ways))
    return max(begins[s] + micro_batches * both[s] + back[s] for s in range(d))


def slack(timeline: Timeline, step: int) -> tuple[list[float], float]:
    """Return how much later a step's new weights are needed than its gradients are complete.

    Args:
        timeline: Of a schedule with a delay of one step, of updates that take no time.
        step: With two more steps behind it.

    Returns:
        Per stage, the time between its last backward pass of the step and the first forward pass
        of step + 2; and the time between the latest such end on any stage and the earliest need.
    """
    last = timeline.micro_batches - 1
    found = {key_of(e.stage, e.action): e for e in timeline.events}
    stages: Sequence[int] = range(timeline.times.stages)
    ends = [found[key_of(s, Backward(step, last))].end for s in stages]
    needs = [found[key_of(s, Forward(step + 2, 0))].start for s in stages]
    own = [need - end for need, end in zip(needs, ends, strict=True)]
    return own, min(needs) - max(ends)
