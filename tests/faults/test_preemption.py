"""Asked to stop: the step is finished, saved, and the run goes on as if it had never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from errors import assert_says, refuses
from quadriga.cli.entry import run
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.engine.faults import preemption
from quadriga.engine.faults.preemption import Preempted, Preemption
from quadriga.verify_resume.children import Progress
from ranks import quadriga, run_ranks
from tiny import assert_same_run, tiny_run

HERE = Path(__file__).parent
STEPS = 8


def faulty(fault: str, rank: int, step: int, folder: Path, *words: str) -> list[str]:
    """Return the command line of a run with a fault."""
    script = str(HERE / "faulty.py")
    return [sys.executable, script, fault, str(rank), str(step), str(folder), "--", *words]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    work_dir = tmp_path_factory.mktemp("straight") / "run"
    assert run(tiny_run(work_dir, STEPS, "loader.workers=0")) == 0
    return work_dir


def test_a_signal_is_a_flag_and_the_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with Preemption() as asked:
        assert not asked.asked
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (asked.asked, asked.signal_name) == (True, "SIGUSR1")
        os.kill(os.getpid(), signal.SIGTERM)  # an echo
        assert asked.signal_name == "SIGUSR1"
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before


def test_a_second_sigterm_ends_the_process_at_once() -> None:
    code = (
        "import os, signal, time\n"
        "from quadriga.engine.faults import preemption\n"
        "preemption.ECHO_SECONDS = 0.01\n"
        "with preemption.Preemption():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 143


def test_the_sigterm_that_follows_a_warning_is_the_first() -> None:
    """A scheduler may warn with SIGUSR1 long before; the run may be saving when SIGTERM comes."""
    code = (
        "import os, signal, time\n"
        "from quadriga.engine.faults import preemption\n"
        "preemption.ECHO_SECONDS = 0.01\n"
        "with preemption.Preemption():\n"
        "    for number in (signal.SIGUSR1, signal.SIGTERM):\n"
        "        os.kill(os.getpid(), number)\n"
        "        time.sleep(0.05)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_what_is_saved_is_left_at_once_and_what_is_not_is_finished() -> None:
    with Preemption() as asked:
        with (
            refuses("SIGTERM", "step 7", "saved", error=Preempted),
            asked.leave_at_once(7),
        ):
            os.kill(os.getpid(), signal.SIGTERM)
    with Preemption() as asked:
        with asked.leave_at_once(None):
            os.kill(os.getpid(), signal.SIGTERM)
        with refuses("step 9", error=Preempted), asked.leave_at_once(9):
            pass


@pytest.mark.parametrize(("fault", "workers"), [("usr1", 0), ("group", 2)])
def test_a_stopped_run_has_saved_its_step_and_goes_on(
    tmp_path: Path, straight: Path, fault: str, workers: int
) -> None:
    """The workers get the signal too: the step needs the batches that they read."""
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, STEPS, f"loader.workers={workers}")
    (done,) = run_ranks(faulty(fault, 0, 3, tmp_path, *words), 1, timeout=120)
    name = "SIGUSR1" if fault == "usr1" else "SIGTERM"
    (line,) = done.stderr.splitlines()
    assert_says(line, name, "step 4", "--resume")
    assert done.returncode == 75
    assert [path.name for path in list_checkpoints(work_dir / "checkpoints")] == ["step_00000004"]
    assert run([*words, "--resume"]) == 0
    assert_same_run(work_dir, straight, STEPS)


def test_one_rank_is_asked_and_all_stop_after_the_same_step(tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, STEPS, "loader.workers=0")
    ranks = run_ranks(faulty("term", 1, 3, tmp_path, *words), 2, timeout=120)
    assert [rank.returncode for rank in ranks] == [75, 75], [rank.stderr for rank in ranks]
    assert_says(ranks[0].stderr, "another rank", "step 4")
    assert ranks[1].stderr == ""
    assert [path.name for path in list_checkpoints(work_dir / "checkpoints")] == ["step_00000004"]


def test_the_launcher_hands_the_signal_on_and_tells_what_the_ranks_ended_with(
    tmp_path: Path,
) -> None:
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, 5000, "loader.workers=0", "train.ranks=2")
    progress = Progress(work_dir)
    process = subprocess.Popen(
        quadriga(*words, "--max-restarts", "3"), stderr=subprocess.PIPE, text=True
    )
    try:
        assert progress.wait(process, 1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, errors
    (line,) = errors.splitlines()
    assert_says(line, "SIGTERM")
    (saved,) = list_checkpoints(work_dir / "checkpoints")
    assert f"step {int(saved.name.removeprefix('step_'))}," in line
