"""A profile holds the steps that were asked for, no more, and says what they were made of."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from errors import assert_command_refused
from quadriga.cli.entry import run
from quadriga.engine.run_config import WARMUP, profiled_steps
from ranks import run_quadriga
from tiny import assert_same_run, tiny_run

BACKWARD = "autograd::engine::evaluate_function: MseLossBackward0"
"""Once a micro-batch."""


def events_of(work_dir: Path, rank: int = 0) -> list[dict[str, Any]]:
    path = work_dir / "profile" / f"rank_{rank:05d}.json.gz"
    with gzip.open(path, "rt") as stream:
        found: list[dict[str, Any]] = json.load(stream)["traceEvents"]
    return found


def steps_in(work_dir: Path, rank: int = 0) -> int:
    return sum(event.get("name") == BACKWARD for event in events_of(work_dir, rank))


@pytest.mark.parametrize(
    ("text", "start", "steps"),
    [
        ("5", 0, range(WARMUP + 1, WARMUP + 6)),
        ("5", 20, range(20 + WARMUP + 1, 20 + WARMUP + 6)),
        ("10-14", 3, range(10, 15)),
        ("7-7", 0, range(7, 8)),
        ("0", 0, None),
        ("14-10", 0, None),
        ("-3", 0, None),
        ("all", 0, None),
        ("3-", 0, None),
        ("5 ", 0, None),
    ],
)
def test_steps_as_they_are_written(text: str, start: int, steps: range | None) -> None:
    assert profiled_steps(text, start) == steps


def test_a_profile_changes_nothing_and_holds_its_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_run(tmp_path / "plain", 6)) == 0
    assert run([*tiny_run(tmp_path / "profiled", 6), "--profile", "2"]) == 0
    said = capsys.readouterr().out
    assert steps_in(tmp_path / "profiled") == 2
    assert_same_run(tmp_path / "plain", tmp_path / "profiled", 6)
    table = (tmp_path / "profiled" / "profile" / "top_ten.txt").read_text()
    head, *rows = table.splitlines()
    assert head.split() == ["operation", "calls", "self", "time", "(CPU)", "share"]
    assert len(rows) == 10
    shares = [float(row.split()[-1].rstrip("%")) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.5
    assert table in said


@pytest.mark.parametrize(("steps", "number"), [("1-1", 1), ("3-6", 4)])
def test_the_first_and_the_last_step_can_be_profiled(
    tmp_path: Path, steps: str, number: int
) -> None:
    assert run([*tiny_run(tmp_path / "run", 6), f"log.profile={steps}"]) == 0
    assert steps_in(tmp_path / "run") == number


def test_each_rank_writes_its_own(tmp_path: Path) -> None:
    words = tiny_run(tmp_path / "run", 3, "train.accumulate=2")
    result = run_quadriga(*words, "--profile", "2-3", world_size=2)
    assert result.returncode == 0, result.stderr
    assert [steps_in(tmp_path / "run", rank) for rank in (0, 1)] == [4, 4]
    assert result.stdout.count("self time (CPU)") == 1


@pytest.mark.parametrize(
    ("steps", "fragments"),
    [
        (
            "many",
            ("5", "10-14", "'many'"),
        ),
        (
            "3-7",
            ("6 steps", "3-7"),
        ),
        (
            "4",
            ("6 steps", "4", "3 steps"),
        ),
    ],
)
def test_steps_that_the_run_does_not_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: str, fragments: tuple[object, ...]
) -> None:
    words = [*tiny_run(tmp_path / "run", 6), "--profile", steps]
    assert_command_refused(words, capsys, "log.profile", *fragments)


def test_a_resumed_run_profiles_what_is_left(tmp_path: Path) -> None:
    for last, left in ((6, 2), (4, None)):
        work_dir = tmp_path / str(last)
        words = ["checkpoint.every_steps=4", f"log.profile=3-{last}"]
        assert run(tiny_run(work_dir, 6, *words)) == 0
        (work_dir / "checkpoints" / "step_00000006").rename(tmp_path / f"aside_{last}")
        (work_dir / "profile").rename(tmp_path / f"profile_{last}")
        assert run(tiny_run(work_dir, 6, *words, "--resume")) == 0
        if left is None:
            assert not (work_dir / "profile").exists()
        else:
            assert steps_in(work_dir) == left
