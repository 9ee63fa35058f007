"""Asked to stop: the step is finished, saved, and the run goes on as if it had never stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from errors import assert_says, refuses
from quadriga.cli.entry import run
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.engine.faults import preemption
from quadriga.engine.faults.preemption import Preempted, Preemption
from quadriga.verify_resume.children import Progress, family_of
from ranks import make_pool, quadriga, run_ranks
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
    make_pool()  # Ctrl-C is not ignored
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with Preemption() as asked:
        assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
        asked.install()
        assert not asked.asked
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (asked.asked, asked.signal_name) == (True, "SIGUSR1")
        os.kill(os.getpid(), signal.SIGTERM)  # an echo
        os.kill(os.getpid(), signal.SIGINT)  # the first one
        assert asked.signal_name == "SIGUSR1"
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before


IN_A_PROCESS = """
import os, signal, sys
from quadriga.engine.faults.preemption import Preemption
signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
with Preemption() as asked:
    asked.install()
    for name in sys.argv[2:]:
        os.kill(os.getpid(), signal.Signals[name])
"""


@pytest.mark.parametrize(
    ("at_first", "signals", "code"),
    [
        ("default_int_handler", ("SIGTERM", "SIGTERM", "SIGUSR1", "SIGINT"), 0),
        ("default_int_handler", ("SIGINT", "SIGTERM"), 0),
        ("default_int_handler", ("SIGINT", "SIGINT"), 130),
        ("default_int_handler", ("SIGTERM", "SIGINT", "SIGINT"), 130),
        ("SIG_IGN", ("SIGINT", "SIGINT"), 0),  # a background job of a shell
    ],
)
def test_only_a_second_interrupt_ends_the_process_at_once(
    at_first: str, signals: tuple[str, ...], code: int
) -> None:
    words = [sys.executable, "-c", IN_A_PROCESS, at_first, *signals]
    assert subprocess.run(words, timeout=60, check=False).returncode == code


def test_what_is_saved_is_left_at_once_and_what_is_not_is_finished() -> None:
    with Preemption() as asked:
        asked.install()
        with (
            refuses("SIGTERM", "step 7", "saved", error=Preempted),
            asked.leave_at_once(7),
        ):
            os.kill(os.getpid(), signal.SIGTERM)
    with Preemption() as asked:
        asked.install()
        with asked.leave_at_once(None):
            os.kill(os.getpid(), signal.SIGTERM)
        with refuses("step 9", error=Preempted), asked.leave_at_once(9):
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_rank_that_waits_for_others_ends_by_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Nobody answers where the ranks meet."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent.getsockname()[1])}
        ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
        words = quadriga(*tiny_run(tmp_path / "run", STEPS, "loader.workers=0"))
        waiting = make_pool().start(words, {**place, **ranks})
        silent.settimeout(60)
        with silent.accept()[0]:
            waiting.send_signal(number)
            assert waiting.wait(60) == -number


def test_a_fork_of_a_rank_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the fork and its own handlers, a loader worker has those of its rank."""
    with Preemption() as asked:
        asked.install()
        own = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: own + 1)
        with asked.leave_at_once(7):
            os.kill(own, signal.SIGTERM)
        assert not asked.asked


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


@contextlib.contextmanager
def started(command: list[str], work_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Return a context with a run that has logged its first step."""
    make_pool()  # Ctrl-C is not ignored
    progress = Progress(work_dir)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert progress.wait(process, 1)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.long), 2])
def test_an_interrupt_saves_the_step(tmp_path: Path, ranks: int) -> None:
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, 50_000, "loader.workers=2", f"train.ranks={ranks}")
    with started(quadriga(*words), work_dir) as process:
        # A terminal interrupts the loader's workers as well; ranks have sessions of their own.
        to = [process, *(family_of(process.pid) if ranks == 1 else [])]
        for one in to:
            one.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    again, stopped = errors.splitlines()
    assert_says(again, "Ctrl-C again")
    (saved,) = list_checkpoints(work_dir / "checkpoints")
    assert_says(stopped, "SIGINT", f"step {int(saved.name.removeprefix('step_'))}", "--resume")


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_second_interrupt_leaves_at_once(tmp_path: Path, ranks: int) -> None:
    """The step that the first one waits for never ends."""
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, 50_000, "loader.workers=0", f"train.ranks={ranks}")
    command = quadriga(*words) if ranks > 1 else faulty("forward", 0, 4, tmp_path, *words)
    with started(command, work_dir) as process:
        for rank in family_of(process.pid):
            rank.suspend()
        while ranks == 1 and not (tmp_path / "fault").exists():
            time.sleep(0.01)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)  # two equal signals at the same moment are one
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    again, lost = errors.splitlines()
    assert_says(again, "Ctrl-C again")
    assert_says(lost, "interrupted")
    assert list_checkpoints(work_dir / "checkpoints") == []


def test_the_launcher_hands_the_signal_on_and_tells_what_the_ranks_ended_with(
    tmp_path: Path,
) -> None:
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, 5000, "loader.workers=0", "train.ranks=2")
    with started(quadriga(*words, "--max-restarts", "3"), work_dir) as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    (line,) = errors.splitlines()
    assert_says(line, "SIGTERM")
    (saved,) = list_checkpoints(work_dir / "checkpoints")
    assert f"step {int(saved.name.removeprefix('step_'))}," in line
