"""Processes that die, overtake or meet each other: nothing is lost and the run stays the same."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from errors import assert_command_refused, assert_refused, assert_says
from quadriga.cli.entry import run
from quadriga.engine.checkpoint.store import list_checkpoints, newest_valid
from quadriga.engine.logs.directory import RunDirectory
from quadriga.verify_resume.children import Progress
from ranks import Rank, quadriga, run_ranks, start_ranks
from tiny import assert_same_run, tiny_run

STEPS = 24
WORDS = ["checkpoint.every_steps=4", "loader.workers=1"]
INJECTED = [sys.executable, str(Path(__file__).resolve().parent / "injected.py")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that met no trouble."""
    work_dir = tmp_path_factory.mktemp("straight") / "run"
    assert run(tiny_run(work_dir, STEPS, *WORDS)) == 0
    return work_dir


def assert_goes_on(work_dir: Path, straight: Path) -> None:
    assert run(tiny_run(work_dir, STEPS, *WORDS, "--resume")) == 0
    assert_same_run(work_dir, straight, STEPS)


def start_and_wait(command: list[str], work_dir: Path, step: int) -> Rank:
    """Start a run and wait until it has logged a step."""
    progress = Progress(work_dir)
    (process,) = start_ranks(command, 1)
    assert progress.wait(process, step), process.communicate()[1]
    return process


def test_a_data_worker_that_dies(tmp_path: Path, straight: Path) -> None:
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, STEPS, *WORDS)
    (rank,) = run_ranks([*INJECTED, "worker", "0", "10", "0", *words], 1)
    assert_refused(rank, "loader.workers=0")
    found = newest_valid(work_dir / "checkpoints", pytest.fail)
    assert found is not None
    assert found.name == "step_00000008"
    assert_goes_on(work_dir, straight)


def test_a_signal_during_a_save(tmp_path: Path, straight: Path) -> None:
    work_dir = tmp_path / "run"
    slow = [*INJECTED, "slow", "0", "1500", "0", *tiny_run(work_dir, STEPS, *WORDS)]
    process = start_and_wait(slow, work_dir, 5)  # step 5 is made while step 4 is written
    assert list_checkpoints(work_dir / "checkpoints") == []
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    saved = [path.name for path in list_checkpoints(work_dir / "checkpoints")]
    assert saved[-1] == "step_00000004", "the save under way was finished"
    assert_says(errors, f"step {int(saved[0].removeprefix('step_'))}", "saved")
    assert_goes_on(work_dir, straight)


def test_signals_during_the_last_save_are_ignored(tmp_path: Path, straight: Path) -> None:
    work_dir = tmp_path / "run"
    slow = [*INJECTED, "slow", "0", "6500", "0", *tiny_run(work_dir, STEPS, "loader.workers=1")]
    process = start_and_wait(slow, work_dir, 3)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(2.6)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert len(list_checkpoints(work_dir / "checkpoints")) == 1
    assert_goes_on(work_dir, straight)


def test_a_kill_while_training_goes_on_beside_a_save(tmp_path: Path, straight: Path) -> None:
    work_dir = tmp_path / "run"
    slow = [*INJECTED, "slow", "0", "700", "0", *tiny_run(work_dir, STEPS, *WORDS)]
    process = start_and_wait(slow, work_dir, 9)  # step 8 is being written, step 4 is there
    process.kill()
    process.communicate(timeout=60)
    saved = [path.name for path in list_checkpoints(work_dir / "checkpoints")]
    assert saved == ["step_00000004"]
    assert_goes_on(work_dir, straight)


def test_two_runs_in_one_work_dir(
    tmp_path: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, STEPS, *WORDS)
    process = start_and_wait([*INJECTED, "slow", "0", "1500", "0", *words], work_dir, 5)
    assert_command_refused([*words, "--resume"], capsys, work_dir, "in use")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert_same_run(work_dir, straight, STEPS)


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "moment", ["the ranks start", pytest.param("they train", marks=pytest.mark.long)]
)
def test_ranks_end_with_their_launcher(tmp_path: Path, moment: str) -> None:
    work_dir = tmp_path / "run"
    words = [w for w in tiny_run(work_dir, 100_000, *WORDS) if not w.startswith("train.ranks")]
    progress = Progress(work_dir)
    launcher = subprocess.Popen(
        quadriga(*words, "--ranks", "2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    family: list[psutil.Process] = []

    def started() -> bool:
        family[:] = psutil.Process(launcher.pid).children(recursive=True)
        return len(family) >= 2 and (moment == "the ranks start" or progress.reached(2))

    try:
        wait_until(started, 120)
        launcher.kill()
        launcher.wait(10)
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
    finally:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    if moment == "they train":
        with RunDirectory(work_dir).lock():
            pass


@pytest.mark.parametrize("how", ["deleted", "renamed", "replaced"])
def test_a_work_dir_that_goes_away_is_noticed_at_once(tmp_path: Path, how: str) -> None:
    work_dir = tmp_path / "run"
    process = start_and_wait(quadriga(*tiny_run(work_dir, 100_000, *WORDS)), work_dir, 5)
    if how == "deleted":
        shutil.rmtree(work_dir, ignore_errors=True)
    else:
        work_dir.rename(tmp_path / "elsewhere")
    if how == "replaced":
        shutil.copytree(tmp_path / "elsewhere", work_dir)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, errors
    (line,) = [line for line in errors.splitlines() if "error" in line]
    assert_says(line, work_dir)
    if how == "renamed":
        assert not work_dir.exists()


def test_what_a_kill_left_of_the_last_clean_up_is_cleaned_up(tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, 8, *WORDS, "checkpoint.keep=1")
    folder = work_dir / "checkpoints"
    assert run([w for w in words if w != "checkpoint.keep=1"]) == 0
    half = folder / ".step_00000002.removed"
    half.mkdir()
    assert [p.name for p in list_checkpoints(folder)] == ["step_00000008", "step_00000004"]
    assert run([*words, "--resume"]) == 0
    assert [p.name for p in list_checkpoints(folder)] == ["step_00000008"]
    assert not half.exists()
