"""A checkpoint that does not fit: one line, nothing lost, and the run goes on afterwards."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from errors import assert_says
from quadriga.cli.entry import run
from quadriga.engine.checkpoint.store import list_checkpoints, verify
from ranks import run_ranks
from tiny import assert_same_run, read_metrics, tiny_run

WORDS = ["checkpoint.every_steps=2", "loader.workers=0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that met no trouble."""
    work_dir = tmp_path_factory.mktemp("disk") / "finished"
    assert run(tiny_run(work_dir, 4, *WORDS)) == 0
    return work_dir


def halve(finished: Path, work_dir: Path) -> Path:
    """Copy the run as it was after step 2, without its report."""
    leave = shutil.ignore_patterns("step_00000004", "report")
    return shutil.copytree(finished, work_dir, ignore=leave)


@pytest.fixture
def small_disk(tmp_path: Path, finished: Path) -> Iterator[Path]:
    """A disk with room for the files of a run and one and a half checkpoints."""
    room = sum(f.stat().st_size for f in (finished / "checkpoints").rglob("*.*")) * 3 // 4
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={room + 65536}"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs privileges")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def assert_nothing_is_lost(work_dir: Path) -> None:
    checkpoints = work_dir / "checkpoints"
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step_00000002"]
    assert verify(checkpoints / "step_00000002").step == 2
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000002"]


def assert_goes_on(work_dir: Path, finished: Path) -> None:
    assert run(tiny_run(work_dir, 4, *WORDS, "--resume")) == 0
    assert_same_run(work_dir, finished, 4)


def test_a_rank_that_cannot_write_its_part(tmp_path: Path, finished: Path) -> None:
    """A limit on the size of files, on the second of two ranks: one host's disk is full."""
    work_dir = halve(finished, tmp_path / "run")
    words = tiny_run(work_dir, 4, *WORDS, "--resume")
    limited = [sys.executable, str(Path(__file__).with_name("injected.py")), "limit", "1", "16"]
    ranks = run_ranks([*limited, "0", *words], 2, timeout=120)
    errors = [line for rank in ranks for line in rank.stderr.splitlines()]
    assert [rank.returncode for rank in ranks] == [2, 2], errors
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: checkpoint ")
    assert_says(errors[0], "step_00000004", "File too large")
    assert_nothing_is_lost(work_dir)
    assert_goes_on(work_dir, finished)


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_full_disk(
    small_disk: Path,
    tmp_path: Path,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    asynchronous: str,
) -> None:
    work_dir = halve(finished, small_disk / "run")
    how = f"checkpoint.asynchronous={asynchronous}"
    assert run(tiny_run(work_dir, 4, *WORDS, how, "--resume")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: checkpoint ")
    assert_says(line, "step_00000004", "No space left on device")
    assert_nothing_is_lost(work_dir)
    roomy = shutil.copytree(work_dir, tmp_path / "roomy")
    assert_goes_on(roomy, finished)


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_full_disk_while_training_goes_on(
    small_disk: Path,
    tmp_path: Path,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    asynchronous: str,
) -> None:
    """A warning for step 3; that the last checkpoint, of step 4, is not there is an error.

    A synchronous save warns at once, before it is known to be the last.
    """
    work_dir = halve(finished, small_disk / "run")
    words = [
        "checkpoint.every_steps=1",
        "checkpoint.on_failure=continue",
        f"checkpoint.asynchronous={asynchronous}",
    ]
    assert run(tiny_run(work_dir, 4, *WORDS[1:], *words, "--resume")) == 2
    said = capsys.readouterr()
    lines = [line for line in (said.err + said.out).splitlines() if "checkpoint" in line]
    last = [line.partition(":")[0] for line in lines if "step_00000004" in line]
    assert last == (["error"] if asynchronous == "true" else ["warning", "error"])
    (warning,) = [line for line in lines if "step_00000003" in line]
    assert_says(warning, "checkpoint.on_failure", "continue")
    assert read_metrics(work_dir) == read_metrics(finished)
    assert_nothing_is_lost(work_dir)
    assert_goes_on(shutil.copytree(work_dir, tmp_path / "roomy"), finished)
