"""Cost of one run from its times.jsonl: operations, device time, wall time and memory.

Steps that were repeated after a kill count once; the time of their first execution is reported as
lost. Start-up time (imports, the model, reading a checkpoint) is reported separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

from quadriga.engine.logs.times import Event


@final
@dataclass(frozen=True, kw_only=True)
class RunCost:
    """The cost of one run so far. Times are in seconds, memory in GiB."""

    steps: int = 0
    """Finished optimizer steps."""
    samples: int = 0
    """Samples of those steps."""
    flops: float | None = 0.0
    """Model FLOPs of those samples, forward and backward; None if unknown."""
    seconds: float = 0.0
    """Wall time of those steps with their evaluations and checkpoints, over all attempts."""
    evaluation_seconds: float = 0.0
    """The part of `seconds` that evaluations took."""
    device_seconds: float = 0.0
    """`seconds` times the number of ranks."""
    start_up_seconds: float = 0.0
    """Wall time before the first step of each attempt; not in `seconds`."""
    lost_steps: int = 0
    """Steps that were repeated, or have to be, after a kill."""
    lost_seconds: float = 0.0
    """Wall time of their first execution; not in `seconds`."""
    lost_device_seconds: float = 0.0
    """`lost_seconds` times the number of ranks."""
    attempts: int = 0
    """How often the run was started or resumed."""
    memory_gib: float | None = None
    """Peak memory of rank 0: reserved on a GPU, resident on the CPU; None if unknown."""


_Alone = tuple[str, float, int]
"""An evaluation outside the steps: process, seconds, ranks."""


@dataclass
class _Stretch:
    """Consecutive steps of one process."""

    process: str
    start: int
    began: float
    ranks: int
    batch_size: int
    flops_per_sample: float | None
    start_up: float
    marks: list[tuple[int, float]]
    """(finished steps, seconds since `began`), both non-decreasing; the first is (start, 0)."""
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    """(finished steps, seconds of their evaluation)."""
    memory: float = 0.0
    is_open: bool = True

    @property
    def last(self) -> int:
        return self.marks[-1][0]

    def seconds_at(self, step: int) -> float:
        """Return the seconds at which `step` steps were finished; linear between two marks."""
        if step >= self.last:
            return self.marks[-1][1]
        before = [mark for mark in self.marks if mark[0] <= step]
        if not before:
            return 0.0
        (low, then), (high, later) = before[-1], self.marks[len(before)]
        return then + (later - then) * (step - low) / (high - low)


def run_cost(events: Sequence[Event], saved: int | None = None) -> RunCost:
    """Return the cost of a run.

    Args:
        events: The events of `read_times`.
        saved: For a run that is not running: finished steps in its newest checkpoint; the steps
            after it are lost. None while it runs.
    """
    stretches, alone = _stretches(events)
    if not stretches:
        return RunCost()
    seconds = device = lost = lost_device = evaluation = 0.0
    lost_steps = 0
    for place, part in enumerate(stretches):
        # Later stretches repeat the steps after their start.
        starts = [later.start for later in stretches[place + 1 :]]
        limit = min(starts if saved is None else [*starts, saved], default=part.last)
        kept = max(part.start, min(part.last, limit))
        useful = part.seconds_at(kept) if limit >= part.start else 0.0
        wasted = part.marks[-1][1] - useful
        seconds, device = seconds + useful, device + useful * part.ranks
        lost, lost_device = lost + wasted, lost_device + wasted * part.ranks
        lost_steps += part.last - kept
        evaluation += sum(s for step, s in part.evaluations if step <= kept)
    for _, took, ranks in alone:
        seconds, device, evaluation = seconds + took, device + took * ranks, evaluation + took
    last = stretches[-1]
    steps = last.last if saved is None else min(last.last, saved)
    samples = steps * last.batch_size
    known = [each for part in stretches if (each := part.flops_per_sample) is not None]
    each = known[-1] if known else None
    return RunCost(
        steps=steps,
        samples=samples,
        flops=None if each is None else each * samples,
        seconds=seconds,
        evaluation_seconds=evaluation,
        device_seconds=device,
        start_up_seconds=_start_up(stretches, alone),
        lost_steps=lost_steps,
        lost_seconds=lost,
        lost_device_seconds=lost_device,
        attempts=len(stretches),
        memory_gib=max(part.memory for part in stretches) or None,
    )


def _start_up(stretches: Sequence[_Stretch], alone: Sequence[_Alone]) -> float:
    """Return the time before the first step of each process, without evaluations in that time."""
    first = {part.process: part.start_up for part in reversed(stretches)}
    for process, took, _ in alone:
        if process in first:
            first[process] = max(0.0, first[process] - took)
    return sum(first.values())


def _stretches(events: Iterable[Event]) -> tuple[list[_Stretch], list[_Alone]]:
    """Return the stretches of steps, and the evaluations outside of them."""
    found: list[_Stretch] = []
    alone: list[_Alone] = []
    for event in events:
        kind, step = event["event"], int(event.get("step", 0))
        seconds = float(event.get("seconds", 0.0))
        current = found[-1] if found and found[-1].is_open else None
        if kind == "begin":
            found.append(_begin(event, step))
        elif kind == "work" and current is not None:
            current.flops_per_sample = event.get("flops_per_sample")
        elif kind == "steps" and current is not None:
            current.marks.append((max(step, current.last), max(seconds, current.marks[-1][1])))
            current.memory = max(current.memory, float(event.get("memory_peak_gib", 0.0)))
        elif kind == "evaluated" and current and event.get("process") == current.process:
            current.evaluations.append((step, seconds))
            since = float(event.get("time", 0.0)) - current.began
            current.marks.append((max(step, current.last), max(since, current.marks[-1][1])))
        elif kind == "evaluated":
            alone.append((str(event.get("process", "")), seconds, int(event.get("ranks", 1))))
        elif kind == "end" and current is not None:
            current.is_open = False
    return found, alone


def _begin(event: Event, step: int) -> _Stretch:
    each = event.get("flops_per_sample")
    return _Stretch(
        process=str(event.get("process", "")),
        start=step,
        began=float(event.get("time", 0.0)),
        ranks=int(event.get("ranks", 1)),
        batch_size=int(event.get("batch_size", 1)),
        flops_per_sample=None if each is None else float(each),
        start_up=float(event.get("start_up_seconds", 0.0)),
        marks=[(step, 0.0)],
    )
