"""A rank that stands still is named, with its stacks, and the run ends instead of waiting."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from errors import assert_says
from quadriga.distributed.environment import SINGLE
from quadriga.engine.faults.hang import (
    HangDetector,
    Report,
    StepClock,
    read_report,
    report_path,
    verdict,
)
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.engine.run_config import HealthConfig
from ranks import start_ranks
from tiny import tiny_run

FAULTY = str(Path(__file__).parent / "faulty.py")
LIMITS = ("health.hang_seconds=3", "health.hang_factor=2")


def hang(fault: str, rank: int, folder: Path, *words: str) -> tuple[list[int], list[str]]:
    """Run two ranks, one of which stands still at step 5; return exit codes and errors."""
    run = tiny_run(folder / "run", 5000, "loader.workers=0", *LIMITS, *words)
    command = [sys.executable, FAULTY, fault, str(rank), "5", str(folder), "--", *run]
    processes = start_ranks(command, 2)
    errors, alive = [""] * 2, [r for r in (0, 1) if (r, fault) != (rank, "stop")]
    try:
        for index in alive:
            errors[index] = processes[index].communicate(timeout=120)[1]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [processes[index].returncode for index in alive], errors


@pytest.mark.parametrize("fault", ["data", "forward"])
def test_the_rank_that_stands_still_is_named(tmp_path: Path, fault: str) -> None:
    codes, errors = hang(fault, 1, tmp_path)
    assert codes == [70, 70], errors
    told = [line for text in errors for line in text.splitlines()]
    assert len(told) == 1, told
    folder = tmp_path / "run" / "hang"
    found = read_report(folder, 1)
    assert found is not None
    assert told[0].startswith("error: ")
    named = f"rank 1 ({found.host}, {found.pid})"
    assert_says(told[0], named, fault, "step 6", "1 rank", "backward", folder)
    assert "time.sleep(600)" in report_path(folder, 1).read_text()


def test_a_rank_that_does_not_answer_is_named(tmp_path: Path) -> None:
    codes, errors = hang("stop", 0, tmp_path)
    assert codes == [70], errors
    (line,) = errors[1].splitlines()
    assert line.startswith("error: ")
    assert_says(line, "rank 0", "step 6", "stopped", "1 rank")


def report(rank: int, step: int, phase: str, seconds: float = 400.0) -> Report:
    return Report(rank=rank, host="host", pid=rank, step=step, phase=phase, seconds=seconds)


@pytest.mark.parametrize(
    ("reports", "world_size", "fragments"),
    [
        (
            [report(0, 122, "backward"), report(1, 122, "data", 412.0), report(2, 122, "backward")],
            3,
            ("rank 1 (host, 1) stands", "data", "step 123", "412 s", "2 ranks", "backward"),
        ),
        (
            [report(0, 9, "data"), report(1, 8, "reduce"), report(2, 8, "reduce")],
            3,
            (
                "rank 1 (host, 1), rank 2 (host, 2) stand",
                "reduce",
                "step 9",
                "400 s",
                "1 rank",
                "data",
            ),
        ),
        (
            [report(0, 8, "reduce")],
            3,
            ("rank 1 (b, 7), rank 2 (c, 8)", "answer", "step 9", "1 rank", "reduce", "400 s"),
        ),
        (
            [report(0, 8, "reduce"), report(1, 8, "reduce")],
            2,
            ("rank 0 (host, 0), rank 1 (host, 1) stand", "reduce", "step 9", "400 s", "same place"),
        ),
        ([report(0, 8, "save")], 1, ("rank 0 (host, 0) stands", "save", "step 9", "400 s")),
        (
            [report(0, 8, "pipeline"), report(1, 9, "forward"), report(2, 8, "reduce")],
            3,
            ("rank 1 (host, 1) stands", "forward", "step 10", "400 s", "in pipeline", "in reduce"),
        ),
        (
            [report(0, 8, "pipeline"), report(1, 7, "pipeline")],
            2,
            ("rank 1 (host, 1) stands", "pipeline", "step 8", "400 s", "1 rank waits"),
        ),
    ],
)
def test_the_least_far_or_the_absent_are_named(
    reports: list[Report], world_size: int, fragments: tuple[object, ...]
) -> None:
    members = ["a, 6", "b, 7", "c, 8"][:world_size]
    told = verdict(reports, world_size, Path("run/hang"), members)
    assert_says(told, "run/hang", *fragments)
    assert "\n" not in told


def test_a_report_is_read_back_and_a_torn_one_is_none(tmp_path: Path) -> None:
    there = report(3, 7, "data", 12.5)
    path = report_path(tmp_path, 3)
    path.write_text(f"{there.header()}\n\nthread MainThread\n")
    assert read_report(tmp_path, 3) == there
    path.write_text(there.header()[:30])
    assert read_report(tmp_path, 3) is None
    assert read_report(tmp_path, 4) is None


def test_the_limit_follows_the_pace_and_the_phase() -> None:
    phase_timer, config = PhaseTimer(), HealthConfig(hang_seconds=10, hang_factor=4)
    phase_timer.since = phase_timer.step_since = 0.0
    clock = StepClock(phase_timer)
    assert clock.limit(config) == 100  # start
    phase_timer.enter("data")
    assert clock.limit(config) == 30  # the first step
    for step in range(101, 106):  # resumed; steps of seven seconds, two of them seen at once
        phase_timer.step, phase_timer.step_since = step, 7.0 * (step - 100)
        if step != 104:
            clock.look(phase_timer.step_since)
        if step == 101:
            assert clock.limit(config) == 30
    assert clock.limit(config) == 28
    phase_timer.step, phase_timer.step_since = 106, 36.0
    clock.look(36.0)
    for phase, limit in (("evaluate", 1000), ("save", 100), ("forward", 28)):
        phase_timer.enter(phase)
        assert clock.limit(config) == limit
    assert StepClock(phase_timer).limit(HealthConfig(hang_factor=None)) == float("inf")
    assert clock.standing(50.0) == 14.0
    phase_timer.phase = "evaluate"
    clock.look(90.0)
    phase_timer.phase = "log"  # what was done beside the steps does not count for the next one
    assert clock.standing(95.0) == 5.0


def test_a_run_that_goes_on_is_left_alone_and_old_reports_are_kept(tmp_path: Path) -> None:
    path = report_path(tmp_path, 0)
    path.write_text("of a hang before")
    phase_timer, config = PhaseTimer(), HealthConfig(hang_seconds=0.2, hang_factor=2)
    with HangDetector(phase_timer, config, SINGLE, tmp_path):
        assert not path.exists()
        for step in range(30):
            phase_timer.begin_step(step)
            phase_timer.enter("data")
            time.sleep(0.02)
            phase_timer.end_step()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["of a hang before"]


def test_a_rank_whose_connection_breaks_ends_like_the_one_that_spoke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    other = report(1, 4, "forward")
    broken = RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError), HangDetector(PhaseTimer(), HealthConfig(), SINGLE, tmp_path):
        raise broken
    assert left == [], "without a hang an error is an error"
    detector = HangDetector(PhaseTimer(), HealthConfig(), SINGLE, tmp_path)
    detector.__enter__()
    report_path(tmp_path, 0).write_text(f"{other.header()}\n\nthread MainThread\n")
    detector.__exit__(RuntimeError, broken, None)
    assert left == [70]
    assert "Connection closed" in (tmp_path / "rank_00000.error.txt").read_text()
