"""The simulated timing of a schedule's actions, and bounds of it in closed form.

A stage carries out its actions in order, each as soon as its inputs have arrived. Messages leave a
stage in order, and their transfer overlaps with the next passes. An update begins when every stage
has ended the step's backward passes (the gradient norm needs all stages) and overlaps with the
passes until the `Wait` of the step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

from quadriga.pipeline.schedules.actions import (
    Action,
    Backward,
    Forward,
    Place,
    Schedule,
    Update,
    Wait,
)


@final
@dataclass(frozen=True, kw_only=True)
class Times:
    """The times of a pipeline's parts, in seconds (or any other unit)."""

    forward: tuple[float, ...]
    """Forward pass of one micro-batch, per stage."""
    backward: tuple[float, ...]
    """Backward pass of one micro-batch, per stage, with recomputation."""
    transfer: tuple[float, ...] = ()
    """Transfer of one micro-batch from each stage but the last to the next, in either direction;
    empty for 0."""
    beside: tuple[float, ...] = ()
    """The part of an update that may overlap with passes (reductions), per stage; empty for 0."""
    step: tuple[float, ...] = ()
    """The part of an update during which the stage is busy, at its `Wait`; empty for 0."""
    is_deferred: bool = True
    """Whether `beside` overlaps with the passes after `Update`; otherwise the stage waits."""

    def __post_init__(self) -> None:
        """Check that the lengths agree.

        Raises:
            ValueError: The lengths do not agree.
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
    """Return a unique key of an action: with its class, which a NamedTuple's equality ignores."""
    return stage, type(action).__name__, action


class Event(NamedTuple):
    """One action of one stage; an `Update` lasts from the complete gradient to the new weights."""

    stage: int
    action: Action
    start: float
    end: float


@final
@dataclass(frozen=True)
class Timeline:
    """The result of `simulate`."""

    times: Times
    micro_batches: int
    steps: int
    version: tuple[int, ...]
    """Version of the weights of each step: the number of updates made to them."""
    events: tuple[Event, ...]
    """Events stage by stage, in order within a stage."""
    in_flight: tuple[int, ...]
    """Maximum number of micro-batches that each stage held at once."""
    ends: dict[int, float] = field(repr=False)
    """Step -> time at which its update was done on all stages."""

    @property
    def seconds(self) -> float:
        """Time at which the last action ends."""
        return max(event.end for event in self.events)

    @property
    def step_seconds(self) -> float:
        """Seconds of one step in the steady state: the time between updates in the middle.

        The last step ends sooner, since none follows it, and is left out; with fewer than three
        steps, the mean over all steps.
        """
        if self.steps < 3:
            return self.seconds / self.steps
        first = (self.steps - 1) // 2
        return (self.ends[self.steps - 2] - self.ends[first - 1]) / (self.steps - 1 - first)

    @property
    def bubble(self) -> float:
        """Share of the stages' time in the steady state without forward or backward passes."""
        times = self.times
        busy = self.micro_batches * (sum(times.forward) + sum(times.backward))
        return 1.0 - busy / (times.stages * self.step_seconds)

    def of_stage(self, stage: int) -> list[Event]:
        """Return the events of one stage in order."""
        return [event for event in self.events if event.stage == stage]


def lower_bound(name: str, times: Times, micro_batches: int) -> float:
    """Return a lower bound of the seconds of a step in the steady state.

    With d stages and m micro-batches: a step with a flush takes at least the time in which
    micro-batch 0 reaches a stage and returns from it, plus m passes of that stage. A pipeline
    without a flush has at most d - s micro-batches between stage s and the end, so each takes at
    least 1 / (d - s) of the round trip from stage s to the end.

    Args:
        name: The schedule's name.
        times: Times of the parts.
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
    # A stage can begin when its own weights are updated and micro-batch 0 has arrived.
    begins = [max(updates[0] + way, own) for way, own in zip(there, updates, strict=True)]
    if name == "sequential":
        late = max(begin - way for begin, way in zip(begins, there, strict=True))
        return late + micro_batches * (sum(both) + 2 * sum(ways))
    return max(begins[s] + micro_batches * both[s] + back[s] for s in range(d))


def slack(timeline: Timeline, step: int) -> tuple[list[float], float]:
    """Return the time from a step's complete gradients to the first use of its new weights.

    Args:
        timeline: A timeline of a schedule with a delay of one step, whose updates take no time.
        step: A step that at least two steps follow.

    Returns:
        Per stage, the time between its last backward pass of the step and the first forward pass
        of step + 2; and the time from the latest such end to the earliest such start of any stage.
    """
    last = timeline.micro_batches - 1
    found = {key_of(e.stage, e.action): e for e in timeline.events}
    stages: Sequence[int] = range(timeline.times.stages)
    ends = [found[key_of(s, Backward(step, last))].end for s in stages]
    needs = [found[key_of(s, Forward(step + 2, 0))].start for s in stages]
    own = [need - end for need, end in zip(needs, ends, strict=True)]
    return own, min(needs) - max(ends)


def simulate(schedule: Schedule, times: Times, micro_batches: int, steps: int) -> Timeline:
    """Simulate steps that begin and end with an empty pipeline.

    Args:
        schedule: The schedule.
        times: Times of its actions.
        micro_batches: Micro-batches of a step.
        steps: Number of steps.

    Raises:
        UserError: The schedule needs more micro-batches.
        RuntimeError: The actions deadlock.
    """
    schedule.check(times.stages, micro_batches)
    run = _Run(schedule, times, micro_batches, steps)
    run.to_the_end()
    return Timeline(
        times=times,
        micro_batches=micro_batches,
        steps=steps,
        version=tuple(schedule.version(step) for step in range(steps)),
        events=tuple(event for stage in run.events for event in stage),
        in_flight=tuple(run.most),
        ends={step: max(run.updated[step].values()) for step in range(steps)},
    )


class _Run:
    """The state of a simulation: each stage's next action and the time when it is free."""

    def __init__(self, schedule: Schedule, times: Times, micro_batches: int, steps: int) -> None:
        stages = times.stages
        self.times, self.stages = times, stages
        self.queues: list[Iterator[Action]] = [
            schedule.actions(Place(s, stages, micro_batches), 0, lambda step: step < steps)
            for s in range(stages)
        ]
        self.next: list[Action | None] = [next(queue, None) for queue in self.queues]
        self.free = [0.0] * stages
        self.events: list[list[Event]] = [[] for _ in range(stages)]
        self.arrived: dict[Key, float] = {}
        """Action of a stage -> time at which its input from a neighbour arrives."""
        self.link: dict[tuple[int, int], float] = defaultdict(float)
        self.told: dict[int, dict[int, float]] = defaultdict(dict)
        """Step -> stage -> time at which its gradient was complete."""
        self.updated: dict[int, dict[int, float]] = defaultdict(dict)
        """Step -> stage -> time at which its new weights were complete."""
        self.held, self.most = [0] * stages, [0] * stages

    def to_the_end(self) -> None:
        """Carry out every action.

        Raises:
            RuntimeError: The actions deadlock.
        """
        progress = True
        while progress:
            progress = False
            for stage in range(self.stages):
                while self._advance(stage):
                    progress = True
        if any(action is not None for action in self.next):
            raise RuntimeError(f"the stages wait for one another at {self.next}")

    def _advance(self, stage: int) -> bool:
        """Carry out the stage's next action if the times of its inputs are known."""
        action = self.next[stage]
        if action is None:
            return False
        done = {Forward: self._forward, Backward: self._backward, Update: self._update}.get(
            type(action), self._wait
        )(stage, action)
        if done:
            self.next[stage] = next(self.queues[stage], None)
        return done

    def _forward(self, stage: int, action: Action) -> bool:
        if stage > 0 and key_of(stage, action) not in self.arrived:
            return False
        self.held[stage] += 1
        self.most[stage] = max(self.most[stage], self.held[stage])
        self._do(stage, action, self.times.forward[stage], stage + 1)
        return True

    def _backward(self, stage: int, action: Action) -> bool:
        if stage < self.stages - 1 and key_of(stage, action) not in self.arrived:
            return False
        self._do(stage, action, self.times.backward[stage], stage - 1)
        self.held[stage] -= 1
        return True

    def _do(self, stage: int, action: Action, seconds: float, target: int) -> None:
        start = max(self.free[stage], self.arrived.pop(key_of(stage, action), 0.0))
        end = start + seconds
        self.free[stage] = end
        self.events[stage].append(Event(stage, action, start, end))
        if 0 <= target < self.stages:
            way = (stage, target)
            transfer = self.times.transfer[min(way)] if self.times.transfer else 0.0
            self.link[way] = max(end, self.link[way]) + transfer
            self.arrived[key_of(target, action)] = self.link[way]

    def _update(self, stage: int, action: Action) -> bool:
        self.told[action.step].setdefault(stage, self.free[stage])
        if self.times.is_deferred:
            return True
        end = self._reduced(stage, action.step)
        if end is None:
            return False
        self.free[stage] = max(self.free[stage], end)
        return True

    def _wait(self, stage: int, action: Action) -> bool:
        step = action.step
        end = self._reduced(stage, step)
        if end is None:
            return False
        if stage not in self.updated[step]:
            own = self.times.step[stage] if self.times.step else 0.0
            end = max(self.free[stage], end) + own if own else end
            self.updated[step][stage] = end
            told = self.told[step][stage]
            self.events[stage].append(Event(stage, Update(step), told, max(told, end)))
        start = self.free[stage]
        self.free[stage] = max(start, end)
        self.events[stage].append(Event(stage, Wait(step), start, self.free[stage]))
        return True

    def _reduced(self, stage: int, step: int) -> float | None:
        """Return the time at which `Times.beside` ends; None until all stages reach `Update`."""
        told = self.told[step]
        if len(told) < self.stages:
            return None
        return max(told.values()) + (self.times.beside[stage] if self.times.beside else 0.0)
