"""Hang detection: a run without progress ends itself and names the rank that blocks it.

On every rank a thread watches the rank's phase and step (`PhaseTimer`). If one rank hangs, the
others wait for it in a collective, so all of them detect the hang. Each writes its step, its phase
and the Python stacks of its threads to ``WORK_DIR/hang``. The lowest rank with a report reads all
reports and prints one line that names the rank that is least far or has no report; then all ranks
exit with code 70. No collective is involved, because a collective may be what hangs.

A process that is stopped, or whose GIL is held, writes no report. For a held GIL `faulthandler`
has a timer outside the interpreter, which prints the stacks to standard error.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import socket
import statistics
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self, final, get_args

from quadriga.distributed.environment import DistEnv
from quadriga.engine.meters.phase_timer import Phase, PhaseTimer
from quadriga.engine.run_config import HealthConfig
from quadriga.errors import EXIT_HANG
from quadriga.files import write_text

ORDER = get_args(Phase)
"""The phases in the order of a step."""

_WAITING = ("pipeline", "reduce")
"""Phases in which a rank of a pipeline waits for other ranks."""

_SHOWN = 4


@dataclass(frozen=True)
class Report:
    """The position of a rank in a hang."""

    rank: int
    host: str
    pid: int
    step: int
    """The current step, from 0."""
    phase: str
    seconds: float
    """Seconds without progress."""

    def header(self) -> str:
        """Return the first lines of the report's file, one per field."""
        return "\n".join(f"{field.name}: {getattr(self, field.name)}" for field in fields(self))


def report_path(folder: Path, rank: int) -> Path:
    """Return the file of a rank's report."""
    return folder / f"rank_{rank:05d}.txt"


def read_report(folder: Path, rank: int) -> Report | None:
    """Read a rank's report; None if it is missing or incomplete."""
    try:
        lines = report_path(folder, rank).read_text(encoding="utf-8").splitlines()
        values = dict(line.split(": ", 1) for line in lines[: len(fields(Report))])
        return Report(
            rank=int(values["rank"]),
            host=values["host"],
            pid=int(values["pid"]),
            step=int(values["step"]),
            phase=values["phase"],
            seconds=float(values["seconds"]),
        )
    except (OSError, ValueError, KeyError):
        return None


def verdict(
    reports: Sequence[Report], world_size: int, folder: Path, members: Sequence[str] = ()
) -> str:
    """Return the line that names the ranks that block the others.

    These are the ranks without a report, because every rank that can run writes one; otherwise
    the ranks that are least far. Ranks of a pipeline wait for each other in different phases:
    there only ranks that do not wait are considered, if there are any.

    Args:
        reports: One for each rank that has written one; at least one.
        world_size: Number of ranks.
        folder: Where the reports are, for the message.
        members: Host and process of each rank, in rank order; empty if unknown.
    """
    where = f"stacks are in {folder}"
    answered = {report.rank for report in reports}
    absent = [rank for rank in range(world_size) if rank not in answered]
    step = max(report.step for report in reports) + 1
    seconds = max(report.seconds for report in reports)
    if absent:
        names = _listed([_named(rank, members[rank] if members else "") for rank in absent])
        do = "does" if len(absent) == 1 else "do"
        return (
            f"{names} {do} not answer at step {step} (stopped, dead or the host is gone) while "
            f"{_waiting(reports)} for {seconds:.0f} s; {where}"
        )
    suspects = list(reports)
    if any(report.phase == "pipeline" for report in reports):
        suspects = [r for r in reports if r.phase not in _WAITING] or suspects
    least = min(_progress(report) for report in suspects)
    held = [report for report in suspects if _progress(report) == least]
    rest = [report for report in reports if report not in held]
    names = _listed([_named(r.rank, f"{r.host}, {r.pid}") for r in held])
    stand = "stands" if len(held) == 1 else "stand"
    seconds = max(report.seconds for report in held)
    line = f"{names} {stand} in {held[0].phase} at step {held[0].step + 1} for {seconds:.0f} s"
    if rest:
        return f"{line} while {_waiting(rest)}; {where}"
    alone = "" if world_size == 1 else ", all at the same place"
    return f"{line}{alone}; {where}"


def _progress(report: Report) -> tuple[int, int]:
    return report.step, ORDER.index(report.phase) if report.phase in ORDER else len(ORDER)


def _named(rank: int, where: str) -> str:
    return f"rank {rank} ({where})" if where else f"rank {rank}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _waiting(reports: Sequence[Report]) -> str:
    """Return text such as ``7 ranks wait in backward``, for each phase with waiting ranks."""
    counts = Counter(report.phase for report in reports)
    parts = [
        f"{count} {'rank waits' if count == 1 else 'ranks wait'} in {phase}"
        for phase, count in counts.most_common()
    ]
    return " and ".join(parts)


FACTORS: dict[Phase, float] = {"start": 10.0, "save": 10.0, "evaluate": 100.0}
"""Phase outside of steps -> multiple of ``health.hang_seconds`` that it may take: building a model
and reading its checkpoint, writing one, evaluating. With the default of 5 minutes: 50 minutes, 50
minutes and 8 hours. A probe on a large data set takes hours without reporting progress."""

FIRST_STEP = 3.0
"""Multiple of ``health.hang_seconds`` for the first step, which compiles and starts the data
workers."""

_WINDOW = 50
_SHORTEST_POLL, _LONGEST_POLL = 0.05, 5.0
_SHORTEST_GRACE, _LONGEST_GRACE = 2.0, 60.0


@final
class StepClock:
    """The durations of recent steps, and the time without progress, as the watcher sees them."""

    def __init__(self, phase_timer: PhaseTimer) -> None:
        """Start with the current state of `phase_timer`."""
        self._phase_timer = phase_timer
        self._step: int | None = None  # None until the first step begins
        self._began = phase_timer.step_since
        self._beside = phase_timer.since
        self._seconds: deque[float] = deque(maxlen=_WINDOW)

    def look(self, now: float) -> None:
        """Record the rank's phase and step at `now` (`time.monotonic`)."""
        phase_timer = self._phase_timer
        if phase_timer.phase in FACTORS:
            self._beside = now
        step, began = phase_timer.step, phase_timer.step_since
        if self._step is not None and step > self._step:
            # Several steps may have passed since the last call; their mean is good enough. A save
            # or an evaluation among them makes an outlier, to which the median is robust.
            self._seconds.append((began - self._began) / (step - self._step))
        if began != self._began:
            self._step, self._began = step, began

    def standing(self, now: float) -> float:
        """Return how many seconds the current step, or the phase outside of steps, has lasted."""
        if self._phase_timer.phase in FACTORS:
            return now - self._phase_timer.since
        return now - max(self._phase_timer.step_since, self._beside)

    def limit(self, config: HealthConfig) -> float:
        """Return the seconds without progress that count as a hang."""
        if config.hang_factor is None:
            return float("inf")
        beside = FACTORS.get(self._phase_timer.phase)
        if beside is not None:
            return beside * config.hang_seconds
        if not self._seconds:
            return FIRST_STEP * config.hang_seconds
        return max(config.hang_seconds, config.hang_factor * statistics.median(self._seconds))


@dataclass(frozen=True)
class _Place:
    """The position of a rank; a change means that the rank makes progress."""

    step: int
    phase: Phase
    since: float


@final
class HangDetector:
    """Context in which a hang ends the run with a line that names the blocking rank."""

    def __init__(
        self,
        phase_timer: PhaseTimer,
        config: HealthConfig,
        env: DistEnv,
        folder: Path,
        members: Sequence[str] = (),
    ) -> None:
        """Store the settings; `__enter__` starts the watching thread.

        Args:
            phase_timer: This rank's phase and step; the training thread writes it.
            config: The limits; without a `hang_factor` nothing is watched.
            env: This rank.
            folder: ``WORK_DIR/hang``, which all ranks share.
            members: `host_and_pid` of every rank, to locate ranks without a report.
        """
        self._phase_timer, self._config, self._env = phase_timer, config, env
        self._folder, self._members = folder, members
        seconds = config.hang_seconds
        self._poll = min(_LONGEST_POLL, max(_SHORTEST_POLL, seconds / 20))
        # Long enough for slower ranks to detect the hang, and for a shared disk to show reports.
        self._grace = min(_LONGEST_GRACE, max(_SHORTEST_GRACE, seconds / 4))
        self._over, self._suspects = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start watching; a report of this rank from an earlier hang is renamed."""
        if self._config.hang_factor is None:
            return self
        own = report_path(self._folder, self._env.rank)
        with contextlib.suppress(OSError):
            own.replace(own.with_suffix(".before.txt"))
        self._thread = threading.Thread(target=self._watch, name="hang detector", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop watching.

        A rank that exits because of a hang breaks the other ranks' connections. If this rank hung
        as well, its connection error is a consequence, so the watcher ends the process instead.
        """
        if self._thread is None:
            return
        if isinstance(error, Exception) and self._suspects.is_set():
            self._thread.join(3 * self._grace)
        if isinstance(error, RuntimeError) and self._reports():
            # Another rank has reported the hang and exited before this one detected it.
            self._end_with_the_others(error)
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join(10)
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        clock = StepClock(self._phase_timer)
        while not self._over.wait(self._poll):
            now = time.monotonic()
            clock.look(now)
            limit = clock.limit(self._config)
            _arm(limit)
            standing = clock.standing(now)
            # Ranks reach the limit at different times: report earlier if another rank has.
            if standing > limit or (standing > limit / 2 and self._reports()):
                self._suspects.set()
                self._conclude(clock.standing(now))
                self._suspects.clear()

    def _place(self) -> _Place:
        return _Place(self._phase_timer.step, self._phase_timer.phase, self._phase_timer.since)

    def _conclude(self, seconds: float) -> None:
        """Write a report, wait for the other reports and exit; return if the rank progresses."""
        place, path = self._place(), report_path(self._folder, self._env.rank)
        report = Report(
            rank=self._env.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            step=place.step,
            phase=place.phase,
            seconds=seconds,
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(path, f"{report.header()}\n{stacks()}")
        except OSError as error:  # a full disk, or the disk that hangs: exit all the same
            print(f"warning: {path} cannot be written: {error.strerror}", file=sys.stderr)
        deadline = time.monotonic() + self._grace
        while time.monotonic() < deadline:
            if self._over.wait(self._poll) or self._place() != place:
                with contextlib.suppress(OSError):
                    path.unlink()
                return
            if len(self._reports()) == self._env.world_size:
                break
        reports = self._reports()
        if min(reports, default=self._env.rank) == self._env.rank:
            reports.setdefault(self._env.rank, report)
            line = verdict(
                list(reports.values()), self._env.world_size, self._folder, self._members
            )
            print(f"error: {line}", file=sys.stderr, flush=True)
        else:
            time.sleep(2 * self._poll)  # let the rank that prints the line exit first
        os._exit(EXIT_HANG)

    def _end_with_the_others(self, error: RuntimeError) -> None:
        """Exit with the code of a hang; write the connection error to a file."""
        path = report_path(self._folder, self._env.rank).with_suffix(".error.txt")
        with contextlib.suppress(OSError):
            write_text(path, "".join(traceback.format_exception(error)))
        os._exit(EXIT_HANG)

    def _reports(self) -> dict[int, Report]:
        found = (read_report(self._folder, rank) for rank in range(self._env.world_size))
        return {report.rank: report for report in found if report is not None}


def host_and_pid() -> str:
    """Return this process's host and process id, for `HangDetector`'s `members`."""
    return f"{socket.gethostname()}, {os.getpid()}"


def stacks() -> str:
    """Return the Python stacks of all threads of this process."""
    text = io.StringIO()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        text.write(f"\nthread {names.get(ident, ident)}\n")
        traceback.print_stack(frame, file=text)
    return text.getvalue()


def _arm(limit: float) -> None:
    """Make faulthandler print all stacks if this is not called again within `limit` seconds."""
    stream = sys.__stderr__
    if stream is None or limit == float("inf"):
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a file
        faulthandler.dump_traceback_later(limit, file=stream)
