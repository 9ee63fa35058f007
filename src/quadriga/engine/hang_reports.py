"""Where each rank stands when a run stands still: the files, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

ORDER = (
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
)
"""The phases in the order in which a step, and what follows it, goes through them."""

_WAITING = ("pipeline", "reduce")
"""Phases in which a rank of a pipeline waits for other ranks."""

_SHOWN = 4


@dataclass(frozen=True)
class Report:
    """Where a rank stands."""

    rank: int
    host: str
    pid: int
    step: int
    """The step that is being made, from 0."""
    phase: str
    seconds: float
    """How long it has stood there."""

    def header(self) -> str:
        """Return the first lines of the report's file, one for each field."""
        return "\n".join(f"{field.name}: {getattr(self, field.name)}" for field in fields(self))


def report_path(folder: Path, rank: int) -> Path:
    """Return the file of a rank's report."""
    return folder / f"rank_{rank:05d}.txt"


def read_report(folder: Path, rank: int) -> Report | None:
    """Read a rank's report; None when there is none, or no whole one."""
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
    """Return the line that names who holds up the others.

    Ranks without a report hold them up, for every rank that can run writes one; else those that
    are least far. The ranks of a pipeline wait for each other at different places: there it is
    those that do not wait, as long as there are any.

    Args:
        reports: One for each rank that answered; at least one.
        world_size: Number of ranks.
        folder: Where the reports are, for the user.
        members: Host and process of each rank, in rank order; empty when they are not known.
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
    """Return ``7 ranks wait in backward``, for each phase in which some wait."""
    counts = Counter(report.phase for report in reports)
    parts = [
        f"{count} {'rank waits' if count == 1 else 'ranks wait'} in {phase}"
        for phase, count in counts.most_common()
    ]
    return " and ".join(parts)
