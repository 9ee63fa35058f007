"""Reading a run directory in any state: finished, in progress, half written or damaged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quadriga.config.base import leaves_of
from quadriga.engine.logs.results import RECORDS, EvaluationRecord, read_records
from quadriga.errors import UserError
from quadriga.files import parse_json

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The content of a run directory."""

    folder: Path
    config: dict[str, Any]
    sources: dict[str, str]
    environment: dict[str, Any]
    metrics: list[Record]
    """One record per logged step, in the order of the steps."""
    evaluations: list[EvaluationRecord]
    """One record per evaluation, in the order in which they were made."""
    events: list[Record] = field(default_factory=list)
    """Events, each with its name ``event`` and its ``step``."""
    notes: list[str] = field(default_factory=list)
    """Sentences about files that are missing or damaged."""

    @property
    def name(self) -> str:
        """Name of the run: that in the config, else that of the folder."""
        return str(self.config.get("name") or self.folder.resolve().name)

    @property
    def progress(self) -> float | None:
        """Fraction of the run that is done, 0 to 1; None when its length is unknown."""
        train = self.config.get("train")
        if not isinstance(train, dict):
            return None
        last = self.metrics[-1] if self.metrics else {"step": 0, "epoch": 0.0}
        step, epoch = number_of(last.get("step")) or 0.0, number_of(last.get("epoch")) or 0.0
        steps, epochs = number_of(train.get("steps")), number_of(train.get("epochs"))
        if steps:
            return min(1.0, step / steps)
        if not epochs:
            return None
        # The number of steps is rounded from the epochs: the run may end half a step early or late.
        half = 0.5 * epoch / step if step else 0.0
        return 1.0 if epoch + half >= epochs else epoch / epochs

    def config_rows(self) -> list[tuple[str, Any, str]]:
        """Return (dotted path, value, source) of each leaf of the config."""
        if not self.config:
            return []
        return [
            (path, value, str(self.sources.get(path, "unknown")))
            for path, value in leaves_of(self.config, "")
        ]


def read_run(folder: Path) -> RunFiles:
    """Read a run directory; missing or damaged files become notes.

    Args:
        folder: The run directory.

    Raises:
        UserError: The folder does not exist, or no run has written to it.
    """
    if not folder.is_dir():
        raise UserError(f"the run directory must exist, but {folder} does not; check the path")
    known = ("config.json", "environment.json", "metrics.jsonl", f"report/{RECORDS}")
    if not any((folder / name).is_file() for name in known):
        raise UserError(
            f"a run directory must hold config.json, but {folder} has none of"
            f" {', '.join(known)}; give the folder that `quadriga train` wrote"
        )
    notes: list[str] = []
    saved = _read_object(folder / "config.json", notes)
    evaluations = read_records(folder / "report", notes)
    if not evaluations:
        notes.append("no evaluation has been made yet")
    environment = _read_object(folder / "environment.json", notes)
    metrics = _read_metrics(folder / "metrics.jsonl", notes)
    if evaluations and not any((folder / name).is_file() for name in known[:3]):
        notes = []  # of weights from elsewhere, which have no run
    return RunFiles(
        folder=folder,
        config=mapping_of(saved.get("config")),
        sources=mapping_of(saved.get("sources")),
        environment=environment,
        metrics=metrics,
        evaluations=evaluations,
        events=_read_events(folder / "events.jsonl"),
        notes=notes,
    )


def mapping_of(value: Any) -> dict[str, Any]:
    """Return `value` when it is a dict, else an empty dict."""
    return value if isinstance(value, dict) else {}


def number_of(value: Any) -> float | None:
    """Return `value` as a float when it is a number and not a bool, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """Read a JSON object; a note says why there is none."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} must hold one JSON object, but holds {type(value).__name__}")
        return {}
    return value


def _read_events(path: Path) -> list[Record]:
    """Read the events; damaged lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            event = mapping_of(parse_json(line))
        except ValueError:
            continue
        if isinstance(event.get("event"), str) and number_of(event.get("step")) is not None:
            found.append(event)
    return found


def _read_metrics(path: Path, notes: list[str]) -> list[Record]:
    """Read the logged records in the order of the steps; the last record of a step counts."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    by_step: dict[float, Record] = {}
    damaged = 0
    for position, line in enumerate(lines):
        try:
            record = parse_json(line)
            step = number_of(record["step"])
        except (ValueError, KeyError, TypeError):
            step, record = None, {}
        if step is not None:
            if "lr" in record:  # an evaluation has a line of its own, and is read as a record
                by_step[step] = record
        elif position + 1 == len(lines):
            notes.append("the last line of metrics.jsonl is still being written")
        elif line.strip():
            damaged += 1
    if damaged:
        plural = "lines" if damaged > 1 else "line"
        notes.append(f"metrics.jsonl has {damaged} damaged {plural}, which are left out")
    if not by_step:
        notes.append("no step has been logged yet")
    return [by_step[step] for step in sorted(by_step)]
