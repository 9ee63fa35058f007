"""The timing of a schedule, from its own actions: when each begins and ends on every stage.

A stage does its actions in their order, each as soon as what it needs is there. What a stage sends
goes out in order and takes its time on the way, beside the next passes. An update begins when
every stage has ended the step's backward passes (the gradient's norm is that of all stages) and
runs beside the passes until a `Wait` asks for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from quadriga.pipeline.schedules.actions import (
    Action,
    Backward,
    Forward,
    Place,
    Schedule,
    Update,
    Wait,
)
from quadriga.pipeline.timing import Event, Key, Timeline, Times, key_of


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
