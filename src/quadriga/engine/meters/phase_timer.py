"""What this rank is doing, and how long it did it: for step times and for the hang report."""

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
"""In the order in which a step, and what follows it, goes through them. start: before the first
step, and on the way back from a bad one; data: waiting for a batch; pipeline: waiting for
another stage; backward: with it the exchange of gradients; reduce: waiting for the other ranks'
sums; update: clipping and the optimizer; save: the part of a checkpoint, or of a replay file,
that training waits for."""


@final
class PhaseTimer:
    """The current phase of this rank, read by a watching thread; written by the training thread.

    Attributes are replaced one at a time, never locked: a reader may see the phase of one moment
    and the step of the next, which a report can bear and a step's speed need not pay for.
    """

    def __init__(self) -> None:
        """Begin in the phase "start"."""
        self.step = 0
        """The optimizer step that is being made, from 0."""
        self.phase: Phase = "start"
        self.since = time.monotonic()
        """When the phase began, on `time.monotonic`."""
        self.step_since = self.since
        """When the step began, on `time.monotonic`."""
        self._seconds: dict[str, float] = {}

    def begin_step(self, step: int) -> None:
        """Start a step: its seconds are counted from zero."""
        self.step, self.step_since = step, time.monotonic()
        self._seconds = {}
        self.since = self.step_since

    def enter(self, phase: Phase) -> None:
        """Say that `phase` begins; the one before it ends."""
        now = time.monotonic()
        self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self.since
        self.phase, self.since = phase, now

    def end_step(self) -> dict[str, float]:
        """Return the seconds of each phase of the step, and ``step`` for all of it."""
        self.enter("log")
        return {**self._seconds, "step": self.since - self.step_since}

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Return a context that is in `phase`, and afterwards in the phase before it."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)
