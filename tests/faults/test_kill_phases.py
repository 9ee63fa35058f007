"""SIGKILL at each phase of a save, and ranks that fail alone: the newest whole one is taken up."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from errors import assert_says
from ranks import run_worker

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was found after each kill; all of them in the forks of one process."""
    told, err = run_worker(HERE / "kill_worker.py", str(tmp_path_factory.mktemp("killed")))
    return {**told, "errors": err.splitlines()}


def assert_taken_up(told: dict[str, Any], step: int) -> None:
    """Check that `step` was found whole, that saving went on, and that nothing else is left."""
    assert (told["found"], told["whole"], told["said"]) == (step, True, [])
    assert told["newest"] == step + 2
    saved = [f"step_{later:08d}" for later in (step + 1, step + 2)]
    assert told["left"] == ["best.json", *saved]


@pytest.mark.parametrize(
    ("phase", "found"),
    [
        ("copy", 2),
        ("folder", 2),
        ("write", 2),
        ("next file", 2),
        ("flush", 2),
        ("hash", 2),
        ("manifest", 2),
        ("before the rename", 2),
        ("after the rename", 3),
        ("best.json", 3),
        ("before the removal", 3),
        ("removal", 3),
    ],
)
def test_a_kill_in_a_phase_of_a_save(killed: dict[str, Any], phase: str, found: int) -> None:
    """Step 3 is saved after 1 and 2: it is there from the rename on, and 2 until then."""
    assert killed[phase]["code"] == -signal.SIGKILL
    assert_taken_up(killed[phase], found)


@pytest.mark.parametrize("phase", ["old one aside", "new one in place", "removal of the old one"])
def test_a_kill_while_a_checkpoint_of_the_same_step_is_replaced(
    killed: dict[str, Any], phase: str
) -> None:
    """Step 2 is saved again: one of the two is there at every moment."""
    assert killed[phase]["code"] == -signal.SIGKILL
    assert_taken_up(killed[phase], 2)


def test_the_end_of_the_interpreter_waits_for_a_save(killed: dict[str, Any]) -> None:
    """A process that nobody has told to wait."""
    assert killed["end"]["code"] == 0
    assert_taken_up(killed["end"], 1)


def test_a_kill_of_one_of_two_ranks(killed: dict[str, Any]) -> None:
    """The other one is not left waiting."""
    told = killed["one rank is killed"]
    assert told["codes"] == [2, -signal.SIGKILL]
    assert_taken_up(told, 1)
    (line,) = [line for line in killed["errors"] if "another rank is lost" in line]
    assert_says(line, "step_00000002")


def test_one_of_two_ranks_cannot_write(killed: dict[str, Any]) -> None:
    """Both raise the same error."""
    assert killed["stop"]["codes"] == [2, 2]
    assert_taken_up(killed["stop"], 1)
    lines = [line for line in killed["errors"] if "/stop/step_00000002" in line]
    told = {line.partition(": ")[::2] for line in lines}
    assert {who for who, _ in told} == {"rank 0", "rank 1"}
    assert len({what for _, what in told}) == 1
    assert all("No space left on device" in line for line in lines)


def test_one_of_two_ranks_cannot_write_and_training_goes_on(killed: dict[str, Any]) -> None:
    """One warning; the next save is whole."""
    assert killed["continue"]["codes"] == [0, 0]
    assert_taken_up(killed["continue"], 3)
    (line,) = [line for line in killed["errors"] if "/continue/step_00000002" in line]
    assert_says(line, "checkpoint.on_failure", "continue")
