"""Current phase of this rank and its duration, for step times and hang reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Literal, final

Phase = Literal[
    "start",
    "data",
    "pipeline",
    "forward",
    "backward",
    "reduce",
    "update",
    "log",
    "save",
    "evaluate",
]
"""Phases in the order of a step and what follows it. start: before the first step, and during a
rollback; data: waiting for a batch; pipeline: waiting for another stage; backward: includes the
all-reduce of gradients; reduce: waiting for the sums over the ranks; update: clipping and the
optimizer; save: the part of writing a checkpoint or a replay file that training waits for."""


@final
class PhaseTimer:
    """The current phase of this rank; the training thread writes it, the hang detector reads it.

    Attributes are set without a lock, to cost no step time. A reader may see an old phase with a
    new step, which is harmless in a report.
    """

    def __init__(self) -> None:
        """Begin in the phase "start"."""
        self.step = 0
        """The current optimizer step, from 0."""
        self.phase: Phase = "start"
        self.since = time.monotonic()
        """Start of the phase (`time.monotonic`)."""
        self.step_since = self.since
        """Start of the step (`time.monotonic`)."""
        self._seconds: dict[str, float] = {}

    def begin_step(self, step: int) -> None:
        """Start a step and reset the seconds of all phases."""
        self.step, self.step_since = step, time.monotonic()
        self._seconds = {}
        self.since = self.step_since

    def enter(self, phase: Phase) -> None:
        """End the current phase and begin `phase`."""
        now = time.monotonic()
        self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self.since
        self.phase, self.since = phase, now

    def end_step(self) -> dict[str, float]:
        """Return phase -> seconds of the step; ``step`` is the whole step."""
        self.enter("log")
        return {**self._seconds, "step": self.since - self.step_since}

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Return a context in `phase`; at its end the previous phase continues."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)
