"""times.jsonl: times and cost of a run over all its attempts.

Entries are only appended. metrics.jsonl drops the steps that a resumed run repeats; here their time
stays, so that lost time can be separated from the time of the steps that count
(`quadriga.workflow.ledger`). One JSON object per line, each with ``event`` and ``time`` (Unix):

``start``      `quadriga run` has started a process for the run
``begin``      an attempt begins at ``step`` finished steps, with the operations per sample
``steps``      ``step`` steps are finished, ``seconds`` after the attempt began
``evaluated``  the state after ``step`` was evaluated in ``seconds``
``end``        the attempt is over; the process that started it also writes one, with ``code``

``cpu_seconds`` is the CPU time of rank 0's process so far, all its threads together and without
those of worker processes; of an evaluation its own part.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import psutil

from quadriga.files import parse_json

TIMES = "times.jsonl"

STAMP_SECONDS = 5.0
"""Interval between two ``steps`` events, the time that a kill can leave uncounted. It is shorter at
the start, where it doubles, and in a long attempt 1 % of its length, at most a minute."""

_STAMP_SHARE, _STAMP_MOST = 0.01, 60.0

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
"""How an attempt ends."""

Event = dict[str, Any]


def note(folder: Path, event: str, **plain: str | float | None) -> None:
    """Append an event to a run's times.jsonl.

    Write errors are ignored: metrics.jsonl reports a full disk.
    """
    known = {name: value for name, value in plain.items() if value is not None}
    line = json.dumps({"event": event, "time": round(time.time(), 3), **known})
    with contextlib.suppress(OSError), (folder / TIMES).open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")


def read_times(folder: Path) -> list[Event]:
    """Return the events of a run in file order, without incomplete lines."""
    try:
        lines = (folder / TIMES).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            found.append(event)
    return found


def process_name() -> str:
    """Return a name for this process that is unique even across restarts of the machine."""
    return f"{os.getpid()}@{psutil.Process().create_time():.2f}"


@contextlib.contextmanager
def evaluated(folder: Path, step: int, ranks: int) -> Iterator[None]:
    """Return a context that records its duration as an evaluation, unless it is interrupted."""
    began, worked = time.perf_counter(), time.process_time()
    yield
    note(
        folder,
        "evaluated",
        step=step,
        seconds=round(time.perf_counter() - began, 3),
        cpu_seconds=round(time.process_time() - worked, 3),
        ranks=ranks,
        process=process_name(),
    )


def how_it_ended(kind: type[BaseException] | None) -> str:
    """Return how an attempt ended that raised an exception of this type, or none."""
    if kind is None:
        return FINISHED
    return FAILED if issubclass(kind, Exception) else STOPPED


@final
class TimeLog:
    """Writes one attempt of a run to its times.jsonl, on rank 0."""

    def __init__(
        self,
        folder: Path,
        *,
        active: bool,
        start: int,
        total_steps: int,
        batch_size: int,
        ranks: int,
    ) -> None:
        """Write the ``begin`` event.

        Args:
            folder: The run's work directory.
            active: Whether this rank writes.
            start: Finished steps.
            total_steps: Steps of the whole run.
            batch_size: Samples of a step, over all ranks.
            ranks: Processes of the run, one device each.
        """
        self._folder, self._active = folder, active
        self._began = self._stamped = time.perf_counter()
        self._done, self._peak = start, 0.0
        if active:
            note(
                folder,
                "begin",
                process=process_name(),
                # Time before the first step: imports, the model, the checkpoint.
                start_up_seconds=round(time.time() - psutil.Process().create_time(), 3),
                cpu_seconds=round(time.process_time(), 3),
                step=start,
                total_steps=total_steps,
                batch_size=batch_size,
                ranks=ranks,
            )

    def steps(self, done: int, memory_peak_gib: float) -> None:
        """Update the number of finished steps and the peak memory; write them from time to time."""
        self._done, self._peak = done, max(self._peak, memory_peak_gib)
        now = time.perf_counter()
        age = self._stamped - self._began
        pause = max(min(STAMP_SECONDS, age), min(_STAMP_MOST, _STAMP_SHARE * age))
        if now - self._stamped >= pause:
            self._stamped = now
            self._note("steps")

    def know(self, flops_per_sample: float | None) -> None:
        """Write the model FLOPs of a sample's forward and backward pass, if known."""
        if self._active:
            note(self._folder, "work", flops_per_sample=flops_per_sample)

    def advance(self, done: int) -> None:
        """Update the number of finished steps without writing."""
        self._done = done

    def end(self, kind: type[BaseException] | None) -> None:
        """Write how the attempt ended; `kind` is the type of the exception that ended it."""
        self._note("steps")
        if self._active:
            note(self._folder, "end", how=how_it_ended(kind), process=process_name())

    def _note(self, event: str) -> None:
        if self._active:
            note(
                self._folder,
                event,
                step=self._done,
                seconds=round(time.perf_counter() - self._began, 3),
                cpu_seconds=round(time.process_time(), 3),
                memory_peak_gib=round(self._peak, 4),
            )
