"""Status of a run, from its directory: progress, results, and whether it is running.

Only files are read, so the status is available while the run trains, after a kill, and before its
start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from quadriga.engine.checkpoint.store import InvalidCheckpoint, list_checkpoints, read_manifest
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import last_metrics, missing_protocols
from quadriga.engine.logs.run_cost import RunCost, run_cost
from quadriga.engine.logs.times import FAILED, Event, read_times
from quadriga.engine.run_config import RunConfig
from quadriga.files import LOCK, is_locked, parse_json

State = Literal["finished", "running", "stopped", "failed", "waiting"]
"""finished: all steps are done and evaluated; running: a process trains in the directory; stopped:
ended early by a signal; failed: the last process ended with an error; waiting: not started."""

_TAIL_BYTES = 1 << 16

_HEADLINES = ("held_out.accuracy", "linear_probe.top1", "knn.top1", "glue.score")
"""Metrics that summarise a run; the first available one is shown, else its first metric, else the
loss."""


@final
@dataclass(frozen=True, kw_only=True)
class RunState:
    """The status of one run."""

    state: State
    step: int
    """Finished steps: logged or saved ones while it runs, else those of the newest checkpoint."""
    total_steps: int | None
    """None if no file contains it."""
    metric: str | None
    """Name of the metric that summarises the run."""
    value: float | None
    """Its value."""
    eta_seconds: float | None
    """Estimated seconds to the end, while it runs."""
    cost: RunCost
    error: str | None = None
    """The error of a failed run."""


def state_of(folder: Path, config: RunConfig | None, total_steps: int | None = None) -> RunState:
    """Return the status of a run.

    Args:
        folder: The work directory; it need not exist.
        config: The run; None to read its config.json.
        total_steps: Steps of the whole run; None to read them from its files.
    """
    directory = RunDirectory(folder)
    if config is None and directory.config.is_file():
        config = directory.read_config().config
    events = read_times(folder)
    last = _last_record(directory.metrics)
    total = total_steps or _total(config, events)
    saved = _saved_step(directory)
    metric, value = headline(folder, last)
    running = is_locked(folder / LOCK)
    if config is not None and is_finished(folder, config, total) and not running:
        state: State = "finished"
    else:
        state = "running" if running else _stopped(directory, events, saved)
    logged = int(last.get("step", 0))
    eta = last.get("eta_seconds")
    return RunState(
        state=state,
        step=max(logged, saved) if running else saved,
        total_steps=total,
        metric=metric,
        value=value,
        eta_seconds=_eta(directory.metrics, float(eta)) if running and eta is not None else None,
        cost=run_cost(events, None if running else saved),
        error=_error(events) if state == "failed" else None,
    )


def is_finished(folder: Path, config: RunConfig, total_steps: int | None) -> bool:
    """Return whether the newest checkpoint is at the last step and every protocol has evaluated it.

    Only the sizes of the checkpoint's files are checked; a resumed run verifies their content.
    """
    directory = RunDirectory(folder)
    saved = _saved_step(directory)
    if total_steps is None or saved < total_steps:
        return False
    return not missing_protocols(config, directory.report, saved)


def _saved_step(directory: RunDirectory) -> int:
    """Return the step of the newest checkpoint whose files have their full size, else 0."""
    for path in list_checkpoints(directory.checkpoints):
        try:
            manifest = read_manifest(path)
            whole = all(
                (path / name).stat().st_size == known["bytes"]
                for name, known in manifest.files.items()
            )
        except (InvalidCheckpoint, OSError, KeyError, TypeError, AttributeError):
            continue
        if whole:
            return manifest.step
    return 0


def _stopped(directory: RunDirectory, events: list[Event], saved: int) -> State:
    if _error(events) is not None:
        return "failed"
    return "stopped" if saved or directory.config.is_file() or events else "waiting"


def _error(events: list[Event]) -> str | None:
    """Return the error that ended the last attempt; None if it did not end with an error."""
    ends = [event for event in events if event["event"] in ("begin", "end", "start")]
    if not ends or ends[-1]["event"] != "end" or ends[-1].get("how") != FAILED:
        return None
    return str(ends[-1].get("error", "it ended with an error"))


def _total(config: RunConfig | None, events: list[Event]) -> int | None:
    told = [e["total_steps"] for e in events if isinstance(e.get("total_steps"), int)]
    if told:
        return int(told[-1])
    return None if config is None else config.train.steps


def headline(folder: Path, last: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Return name and value of the metric that summarises a run; (None, None) without any.

    Args:
        folder: The work directory.
        last: The last record of its metrics.jsonl.
    """
    found = last_metrics(RunDirectory(folder).report)
    metrics = {name: value for name, value in found.items() if not name.endswith("_random")}
    accuracies = [name for name in metrics if name.endswith(".accuracy")]  # of several modules
    for name in (*_HEADLINES, *accuracies, *metrics):
        if name in metrics:
            return name, metrics[name]
    loss = last.get("loss")
    return ("loss", float(loss)) if loss is not None else (None, None)


def _last_record(path: Path) -> dict[str, Any]:
    """Return the last complete record of a step in metrics.jsonl; reads only the file's end."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "eta_seconds" in record:  # of a step, no evaluation
            return record
    return {}


def _eta(metrics: Path, then: float) -> float:
    """Return the estimate `then`, in seconds, minus the time since the last record."""
    try:
        return max(0.0, then - (time.time() - metrics.stat().st_mtime))
    except OSError:
        return then
