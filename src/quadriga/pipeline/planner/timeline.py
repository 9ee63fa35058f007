"""The timing of a schedule, from its own actions: when each begins and ends on every stage.

A stage does its actions in their order, each as soon as what it needs is there. What a stage sends
goes out in order and takes its time on the way, beside the next passes. An update begins when
every stage has ended the step's backward passes (the gradient's norm is that of all stages) and
runs beside the passes until a `Wait` asks for it.

How long a pipeline's parts take, what comes of it, and bounds of it in closed form.
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


def simulate(schedule: Schedule, times: Times, micro_batches: int, steps: int) -> Timeline:
    """Time the steps of one segment, from an empty pipeline to an empty pipeline.

    Args:
        schedule: Whose actions are carried out.
        times: What they take.
        micro_batches: Micro-batches of a step.
        steps: Steps of the segment.

    Raises:
        UserError: The schedule needs more micro-batches.
        RuntimeError: The actions wait for one another for ever.
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
    """The state of a simulation: per stage its next action and when it is free."""

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
        """When a stage has what an action needs from its neighbour."""
        self.link: dict[tuple[int, int], float] = defaultdict(float)
        self.told: dict[int, dict[int, float]] = defaultdict(dict)
        """Step -> stage -> when its gradient was complete."""
        self.updated: dict[int, dict[int, float]] = defaultdict(dict)
        """Step -> stage -> when its new weights were there."""
        self.held, self.most = [0] * stages, [0] * stages

    def to_the_end(self) -> None:
        """Carry out every action."""
        progress = True
        while progress:
            progress = False
            for stage in range(self.stages):
                while self._advance(stage):
                    progress = True
        if any(action is not None for action in self.next):
            raise RuntimeError(f"the stages wait for one another at {self.next}")

    def _advance(self, stage: int) -> bool:
        """Carry out the stage's next action, if what it needs is known."""
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
        """Return when the part of the update beside ends, None while a stage has not told."""
        told = self.told[step]
        if len(told) < self.stages:
            return None
        return max(told.values()) + (self.times.beside[stage] if self.times.beside else 0.0)
