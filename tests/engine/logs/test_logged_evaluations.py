"""Evaluations between steps stand in metrics.jsonl, TensorBoard, the table and the curves."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quadriga.cli.entry import run
from quadriga.engine.logs.results import read_records
from quadriga.engine.status import state_of
from quadriga.report.run_files import read_run
from quadriga.report.series import curves_of
from tiny import read_metrics, tiny_run

EPOCH = 1437 / 8  # steps
PROTOCOLS = [{"kind": "knn", "neighbours": 3}, {"kind": "reconstruction"}]
WORDS = (
    f"evaluation.protocols={json.dumps(PROTOCOLS)}",
    f"evaluation.every_epochs={2 / EPOCH}",
    "evaluation.train_samples=40",
    "evaluation.test_samples=40",
    "evaluation.workers=0",
    "loader.workers=0",
    "checkpoint.every_steps=2",
    "checkpoint.keep=9",
    "log.loggers=tensorboard,csv",
)


def evaluations(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "knn.top1" in line]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert run(tiny_run(folder, 6, *WORDS)) == 0
    return folder


def test_they_are_in_every_log(straight: Path) -> None:
    found = {
        r.step: r.metrics["top1"] for r in read_records(straight / "report") if r.kind == "knn"
    }
    assert list(found) == [2, 4, 6]
    lines = evaluations(straight)
    assert {line["step"]: line["knn.top1"] for line in lines} == found
    assert all("reconstruction.masked_mse" in line for line in lines)
    assert [row["step"] for row in read_metrics(straight)] == [1, 2, 3, 4, 5, 6]
    with (straight / "metrics.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["step"] for row in table] == ["1", "2", "3", "4", "5", "6"]
    assert {int(r["step"]): float(r["knn.top1"]) for r in table if r["knn.top1"]} == found
    curves = read_run(straight)
    (curve,) = [
        c
        for c in curves_of(curves.metrics, curves.events, curves.evaluations)
        if c.title == "knn.top1"
    ]
    assert dict(zip(curve.steps, curve.values, strict=True)) == found
    assert (curve.unit, curve.smoothed) == ("%", None)
    state = state_of(straight, None)
    assert (state.state, state.step) == ("finished", 6)


def test_they_are_in_tensorboard_with_the_pictures(straight: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = events.EventAccumulator(str(straight / "tensorboard"), {"images": 0})
    log.Reload()
    assert [scalar.step for scalar in log.Scalars("knn.top1")] == [2, 4, 6]
    (name,) = log.Tags()["images"]
    assert "reconstruction" in name
    assert [image.step for image in log.Images(name)] == [2, 4, 6]


def test_a_resumed_run_has_the_lines_of_one_that_never_stopped(
    straight: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "run"))
    start = str(folder / "checkpoints" / "step_00000002")
    assert run([*tiny_run(folder, 6, *WORDS), "--resume", start]) == 0
    assert evaluations(folder) == evaluations(straight)
    # The evaluation of the last step was cut off: it is made up for and logged.
    shutil.rmtree(folder / "report")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert run([*tiny_run(folder, 6, *WORDS), "--resume"]) == 0
    assert evaluations(folder) == evaluations(straight)
    # What is there is not logged twice.
    assert run([*tiny_run(folder, 6, *WORDS), "--resume"]) == 0
    assert evaluations(folder) == evaluations(straight)
