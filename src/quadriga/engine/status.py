"""What a run directory says of its run: how far it is, what was found, whether it is being made.

Read from its files alone, so that it can be asked while the run trains, after a kill, or never.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from quadriga.engine.checkpoint.store import InvalidCheckpoint, list_checkpoints, read_manifest
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import RESULTS, metrics_at, missing_protocols, read_results
from quadriga.engine.logs.run_cost import RunCost, run_cost
from quadriga.engine.logs.times import FAILED, Event, read_times
from quadriga.engine.run_config import RunConfig
from quadriga.files import LOCK, is_locked

State = Literal["finished", "running", "stopped", "failed", "waiting"]
"""finished: all steps are made and evaluated; running: a process trains there; stopped: begun,
asked to stop or killed; failed: its last process ended with an error; waiting: not begun."""

_TAIL_BYTES = 1 << 16

_HEADLINES = ("held_out.accuracy", "linear_probe.top1", "knn.top1", "glue.score")
"""What a run is told by, the first that it has; else whatever was measured first, else the loss."""


@final
@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run, as its files have it."""

    state: State
    step: int
    """Finished steps: logged ones while it runs, else those of the newest checkpoint."""
    total_steps: int | None
    """None when nothing that is written down tells it."""
    metric: str | None
    """Name of the number that it is told by."""
    value: float | None
    eta_seconds: float | None
    """Of the steps that are left, while it runs."""
    cost: RunCost
    error: str | None = None
    """What a failed run has said last."""


def state_of(folder: Path, config: RunConfig | None, total_steps: int | None = None) -> RunState:
    """Look at a run directory.

    Args:
        folder: The work directory; it need not exist.
        config: The run, where known; else that of its config.json.
        total_steps: Steps of the whole run, where known; else those that it has written down.
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

    The checkpoint's files are looked at, not read: a resumed run verifies what it loads.
    """
    directory = RunDirectory(folder)
    saved = _saved_step(directory)
    if total_steps is None or saved < total_steps:
        return False
    return not missing_protocols(config, directory.report, saved)


def _saved_step(directory: RunDirectory) -> int:
    """Return the step of the newest checkpoint whose files are there in full, else 0."""
    for path in list_checkpoints(directory.checkpoints):
        try:
            manifest = read_manifest(path)
            whole = all(
                (path / name).stat().st_size == known["bytes"]
                for name, known in manifest.files.items()
            )
        except (InvalidCheckpoint, OSError, KeyError, TypeError):
            continue
        if whole:
            return manifest.step
    return 0


def _stopped(directory: RunDirectory, events: list[Event], saved: int) -> State:
    if _error(events) is not None:
        return "failed"
    return "stopped" if saved or directory.config.is_file() or events else "waiting"


def _error(events: list[Event]) -> str | None:
    """Return what the last attempt ended with, when that was an error."""
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
    """Return the name and the value of the number that a run is told by.

    Args:
        folder: The work directory.
        last: Its last record of metrics.jsonl.
    """
    report = RunDirectory(folder).report
    step = int(read_results(report / RESULTS)["step"])
    metrics = {n: v for n, v in metrics_at(report, step).items() if not n.endswith("_random")}
    accuracies = [name for name in metrics if name.endswith(".accuracy")]  # of several modules
    for name in (*_HEADLINES, *accuracies, *metrics):
        if name in metrics:
            return name, metrics[name]
    loss = last.get("loss")
    return ("loss", float(loss)) if loss is not None else (None, None)


def _last_record(path: Path) -> dict[str, Any]:
    """Return the last whole line of metrics.jsonl; only the end of the file is read."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            return record
    return {}


def _eta(metrics: Path, then: float) -> float:
    """Return what is left now of an estimate that was written with the last record."""
    try:
        return max(0.0, then - (time.time() - metrics.stat().st_mtime))
    except OSError:
        return then
