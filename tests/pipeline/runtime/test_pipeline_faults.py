"""Trouble on one rank of a pipeline: decided alike on all, nothing lost, nobody left waiting."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from errors import assert_says
from pipeline_fakes import words_run
from quadriga.config.provenance import Resolved
from ranks import run_ranks
from tiny import assert_bit_equal, read_checkpoint, read_metrics

STEPS = 8
HANG = ["health.hang_seconds=1.5", "health.hang_factor=2"]

CASES: list[dict[str, Any]] = [
    {"name": "straight"},
    {
        "name": "rollback",
        "fault": "nan",
        "rank": 0,
        "step": 4,
        "times": 1,
        "words": ["health.non_finite=rollback"],
    },
    {
        "name": "skip",
        "fault": "nan",
        "rank": 1,
        "step": [4, 5],
        "words": ["health.non_finite=skip"],
    },
    {
        "name": "timed",
        "words": ["checkpoint.every_minutes=1e-9", "checkpoint.asynchronous=false"],
    },
    {"name": "stop", "fault": "bad gradient", "rank": 0, "step": 4},
    {"name": "term", "fault": "signal", "signal": signal.SIGTERM, "rank": 1, "step": 4},
    # While a checkpoint is written: its group is another ring than those of the training.
    {
        "name": "kill",
        "w": 2,
        "fault": "signal",
        "signal": signal.SIGKILL,
        "rank": 3,
        "step": 1,
        "words": ["checkpoint.every_steps=1", "executor.flushed_steps=2"],
    },
    {"name": "hang", "d": 3, "fault": "standing", "rank": 1, "step": 4, "words": HANG},
]


def write_config(folder: Path) -> None:
    """Write the config that the cases change."""
    config = words_run(
        train__steps=8,
        train__accumulate=4,
        train__batch_size=16,
        checkpoint__every_steps=3,
        executor__kind="pipeline",
        executor__schedule="2bw",
        model__dropout=0.1,
        optim__clip_norm=1.0,
        evaluation__protocols=[],
    )
    (folder / "words.json").write_text(Resolved.of(config, "test").as_json())


Ran = tuple[Path, dict[str, list[int]], dict[str, list[str]]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Run all cases once; the folder, and by case the exit codes and the ranks' errors."""
    folder = tmp_path_factory.mktemp("faults")
    write_config(folder)
    codes, errors = {}, {}
    for case in CASES:
        case = {"d": 2, "w": 1, **case}
        worker = str(Path(__file__).with_name("faulty_worker.py"))
        command = [sys.executable, worker, json.dumps(case), str(folder)]
        ranks = run_ranks(command, case["d"] * case["w"], timeout=60)
        codes[case["name"]] = [rank.returncode for rank in ranks]
        lines = [line for rank in ranks for line in rank.stderr.splitlines()]
        errors[case["name"]] = [line for line in lines if "error: " in line]
    return folder, codes, errors


def test_a_passing_fault_of_one_stage_leaves_the_run_as_without_it(
    ran: Ran,
) -> None:
    folder, codes, _ = ran
    assert codes["straight"] == codes["rollback"] == [0, 0]
    same = [read_checkpoint(folder / name, STEPS) for name in ("straight", "rollback")]
    assert_bit_equal(*same)
    losses = [
        [record["loss"] for record in read_metrics(folder / name)]
        for name in ("straight", "rollback")
    ]
    assert losses[0] == losses[1]


def test_checkpoints_by_the_clock_change_nothing(ran: Ran) -> None:
    """A checkpoint is asked for at every step; the step that is in flight then is finished."""
    folder, codes, _ = ran
    assert codes["timed"] == [0, 0]
    saved = sorted(path.name for path in (folder / "timed" / "checkpoints").glob("step_*"))
    assert saved == ["step_00000006", "step_00000008"]
    same = [read_checkpoint(folder / name, STEPS) for name in ("straight", "timed")]
    assert_bit_equal(*same)


def test_two_bad_steps_in_a_row_are_left_out(ran: Ran) -> None:
    folder, codes, _ = ran
    assert codes["skip"] == [0, 0]
    records = read_metrics(folder / "skip")
    assert [record["step"] for record in records if record.get("skipped")] == [5, 6]
    assert [record["step"] for record in records if "loss" not in record] == [5, 6]
    assert int(read_checkpoint(folder / "skip", STEPS)["executor.skipped"]) == 2
    rates = [record["lr"] for record in read_metrics(folder / "straight")]
    assert records[6]["lr"] == rates[4], "schedules follow the updates"


def test_a_bad_gradient_of_one_stage_ends_all_with_one_line(
    ran: Ran,
) -> None:
    _, codes, errors = ran
    assert codes["stop"] == [2, 2]
    (line,) = errors["stop"]
    assert line.startswith("error: ")
    assert_says(line, "gradient norm", "inf", "step 5")


def test_one_rank_that_is_asked_to_stop_stops_all_at_the_same_step(
    ran: Ran,
) -> None:
    folder, codes, _ = ran
    assert codes["term"] == [75, 75]
    (saved,) = [path.name for path in (folder / "term" / "checkpoints").glob("step_0000000[4-8]")]
    assert int(saved[-1]) == read_metrics(folder / "term")[-1]["step"]


def test_all_end_when_one_is_killed(ran: Ran) -> None:
    _, codes, _ = ran
    assert codes["kill"] == [1, 1, 1, -signal.SIGKILL]


def test_who_stands_still_is_named_and_not_who_waits(
    ran: Ran,
) -> None:
    _, codes, errors = ran
    assert codes["hang"] == [70, 70, 70]
    (line,) = errors["hang"]
    assert line.startswith("error: rank 1 (")
    assert_says(line, "2 ranks", "pipeline")
