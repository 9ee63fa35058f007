"""A rank is killed, the launcher starts all of them again, and the run is the one of no kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from errors import assert_says
from quadriga.cli.start import start_of
from quadriga.cli.train import TrainRequest
from quadriga.launch import torchrun as launch
from quadriga.launch.attempts import remember, remembered, restarts
from quadriga.verify_resume.children import Progress
from ranks import quadriga, run_ranks
from tiny import assert_same_run, tiny_run

STEPS = 24
# In the background the save of step 8 might not be over when step 9 is hit.
WORDS = ("loader.workers=0", "checkpoint.every_steps=4", "checkpoint.asynchronous=false")
FAULTY = str(Path(__file__).parent / "faulty.py")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks that met no trouble."""
    work_dir = tmp_path_factory.mktemp("straight") / "run"
    for rank in run_ranks(quadriga(*tiny_run(work_dir, STEPS, *WORDS)), 2, timeout=120):
        assert rank.returncode == 0, rank.stderr
    return work_dir


def torchrun(max_restarts: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on two ranks with torchrun."""
    options = ["--standalone", "--nproc-per-node=2", f"--max-restarts={max_restarts}"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *command],
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.long
def test_ranks_that_torchrun_restarts_resume_by_themselves(tmp_path: Path, straight: Path) -> None:
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, STEPS, *WORDS)
    done = torchrun(1, FAULTY, "kill", "1", "9", str(tmp_path), "--", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fault").exists()
    assert_says(done.stdout, "step 8 of 24")
    assert_same_run(work_dir, straight, STEPS)


def test_ranks_that_our_launcher_restarts_resume_by_themselves(
    tmp_path: Path, straight: Path
) -> None:
    work_dir = tmp_path / "run"
    words = [w for w in tiny_run(work_dir, STEPS, *WORDS) if not w.startswith("train.ranks")]
    progress = Progress(work_dir)
    process = subprocess.Popen(
        quadriga(*words, "--ranks", "2", "--max-restarts", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert progress.wait(process, 5)
        ranks = {c.environ()["RANK"]: c for c in psutil.Process(process.pid).children()}
        ranks["1"].send_signal(signal.SIGKILL)
        out, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert_says(out, "resumed")
    assert_says(errors, "restart 1 of 1")
    assert_same_run(work_dir, straight, STEPS)


@pytest.mark.long
def test_what_the_user_must_mend_is_told_once(tmp_path: Path) -> None:
    done = torchrun(3, "-m", "quadriga", *tiny_run(tmp_path / "run", 4, "optim.lrr=1"))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert_says(done.stderr, "optim.lrr", "optim.lr")


def test_only_what_will_repeat_itself_is_remembered(tmp_path: Path) -> None:
    told = tmp_path / "run" / "attempt_0" / "0" / "error.json"
    told.parent.mkdir(parents=True)
    first = {"TORCHELASTIC_ERROR_FILE": str(told), "TORCHELASTIC_RESTART_COUNT": "0"}
    again = {**first, "TORCHELASTIC_RESTART_COUNT": "1"}
    remember(1, first)
    assert remembered(again) is None
    remember(2, first)
    assert (remembered(again), remembered(first)) == (2, None)
    assert [restarts(e) for e in ({}, again, {"QUADRIGA_RESTARTS": "2"})] == [0, 1, 2]
    remember(2, {})
    assert remembered({}) is None


def test_a_restart_goes_on_with_the_work_dir_and_not_with_the_named_checkpoint(
    tmp_path: Path,
) -> None:
    named = tmp_path / "named"
    request = TrainRequest(
        arguments=(),
        recipe="mae_digits",
        overrides=(),
        work_dir=tmp_path,
        config=None,
        resume=True,
        resume_from=named,
        device=None,
        print_config=False,
        dry_run=False,
        ranks=None,
    )
    assert start_of(request, tmp_path, again=True).resume_from == named
    (tmp_path / "checkpoints" / "step_00000004").mkdir(parents=True)
    assert start_of(request, tmp_path, again=False).resume_from == named
    assert start_of(request, tmp_path, again=True).resume_from is None
    assert start_of(request, tmp_path, again=True).resume


@pytest.mark.parametrize(
    ("codes", "expected"), [((1, 2), 2), ((75, 1), 75), ((-9, 1), 137), ((1, -9), 1)]
)
def test_the_exit_code_is_that_of_the_rank_that_knows_most(
    codes: tuple[int, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks that fail within the same second: one has an error, one has lost the other."""

    def fail(*arguments: object) -> None:
        failures = {i: ProcessFailure(i, 1, code, "") for i, code in enumerate(codes)}
        raise ChildFailedError("train", failures)

    monkeypatch.setattr(launch, "launch_agent", fail)
    assert launch.run_ranks(2, ["train"]) == expected
