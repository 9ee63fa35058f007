"""Which steps are written down, with which numbers, and what stops a run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from errors import refuses
from quadriga.contracts import LoggerContext, StepOutput
from quadriga.distributed.environment import SINGLE, DistEnv
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.journal import Journal
from quadriga.engine.run_config import LogConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.loggers import LoggerSet
from tiny import TIMES, read_metrics

PLAN = RunPlan(
    total_steps=10,
    batch_size=8,
    accumulate=1,
    world_size=1,
    dataset_size=32,
    lr=0.1,
    checkpoint_every=10,
    evaluate_every=10,
)


def output(step: int, **values: float) -> StepOutput:
    metrics = {"loss": 1 / (step + 1), **values}
    return StepOutput(
        step=step,
        metrics={name: torch.tensor(v, dtype=torch.float64) for name, v in metrics.items()},
        grad_norm=torch.tensor(values.get("norm", 2.0)),
        lr=0.01 * step,
        samples=8,
        seconds={"step": 0.5, "data": 0.125},
    )


def write(
    folder: Path,
    outputs: Sequence[StepOutput],
    every: int = 4,
    start: int = 0,
    env: DistEnv = SINGLE,
    loggers: str = "",
) -> None:
    config = LogConfig.from_dict({"every_steps": every, "loggers": loggers})
    opened = LoggerSet(warn=pytest.fail)
    if env.is_main:
        opened.open(config.loggers, LoggerContext(folder, "run", {}, start), say=print)
    directory, console = RunDirectory(folder), Console(False)
    with Journal(directory, config, PLAN, env, console, start, loggers=opened) as journal:
        for step in outputs:
            journal.step(step)


def test_the_first_each_nth_and_the_last_step_are_written(tmp_path: Path) -> None:
    write(tmp_path, [output(step) for step in range(10)])
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [1, 4, 8, 10]
    assert records[1] == {
        "step": 4,
        "epoch": 1.0,
        "samples": 32,
        "loss": 0.25,
        "lr": 0.03,
        "grad_norm": 2.0,
    }


def test_a_resumed_journal_is_that_of_a_run_that_never_stopped(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    for folder in (straight, resumed):
        folder.mkdir()
    write(straight, [output(step) for step in range(10)], every=2)
    write(resumed, [output(step) for step in range(7)], every=2)
    RunDirectory(resumed).rewind_metrics(5)  # the checkpoint is older than the last line
    write(resumed, [output(step) for step in range(5, 10)], every=2, start=5)
    assert read_metrics(resumed) == read_metrics(straight)


def test_times_are_those_of_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    config = LogConfig(every_steps=4)
    with Journal(RunDirectory(tmp_path), config, PLAN, SINGLE, Console(False), 0) as journal:
        for step in range(8):
            now[0] += 3.0 if step == 0 else 0.5
            journal.step(output(step))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, second, third = (
        {k: v for k, v in json.loads(line).items() if k in TIMES} for line in lines
    )
    for times in (first, second, third):
        assert 0 < times.pop("memory_gib") <= times.pop("memory_peak_gib") + 0.01
        assert times.pop("checkpoint_stall_share") == 0
    assert first == {
        "step_seconds": 3.0,
        "data_wait_share": 0.125 / 3,
        "samples_per_second": 8 / 3,
        "eta_seconds": 27.0,
    }
    # Three steps of half a second each, a quarter of it waiting.
    per_step = {"step_seconds": 0.5, "data_wait_share": 0.25, "samples_per_second": 16.0}
    assert second == {**per_step, "eta_seconds": 4.5 / 4 * 6}
    assert third == {**per_step, "eta_seconds": 6.5 / 8 * 2}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    env = DistEnv(1, 2, 1, 2, torch.device("cpu"))
    write(tmp_path, [output(0)], env=env, loggers="tensorboard")
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_nobody_reported_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, [output(0, seen=0.5, unseen=math.nan)])
    (record,) = read_metrics(tmp_path)
    assert record["seen"] == 0.5
    assert "unseen" not in record


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["loss", "norm"])
def test_a_skipped_step_is_marked_and_what_is_not_finite_is_left_out(
    tmp_path: Path, name: str, value: float
) -> None:
    bad = output(0, **{name: value})._replace(skipped=True)
    write(tmp_path, [bad])
    (record,) = read_metrics(tmp_path)
    assert record["skipped"] is True
    field = {"loss": "loss", "norm": "grad_norm"}[name]
    other = {"loss": "grad_norm", "norm": "loss"}[name]
    assert field not in record
    assert math.isfinite(record[other])


def test_a_skipped_step_is_an_event_also_between_two_records(tmp_path: Path) -> None:
    steps = [output(step) for step in range(3)]
    bad = [output(step, loss=math.nan, norm=math.nan)._replace(skipped=True) for step in (3, 4)]
    write(tmp_path, [*steps, *bad], loggers="csv")
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [(e["event"], e["step"]) for e in events] == [("skipped step", 4), ("skipped step", 5)]


def test_event_files_hold_what_the_records_hold(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    write(tmp_path, [output(step) for step in range(10)], loggers="tensorboard")
    found: dict[tuple[int, str], float] = {}
    for path in (tmp_path / "tensorboard").iterdir():
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found[event.step, value.tag] = value.tensor.float_val[0]
    records: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    names = {name for record in records for name in record} - {"step", "samples"}
    assert {name for _, name in found} == names
    for record in records:
        for name in names:
            assert found[record["step"], name] == pytest.approx(record[name], rel=1e-6)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with refuses("metrics.jsonl", tmp_path, "No space left", "--resume"):
        write(tmp_path, [output(0)])
