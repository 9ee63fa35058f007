"""A run that was killed and resumed is the run that never stopped, bit for bit."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from errors import assert_command_refused, assert_says
from quadriga.cli.entry import run
from quadriga.verify_resume.children import Progress
from ranks import quadriga, run_ranks, start_ranks
from tiny import assert_same_run, read_metrics, tiny_run

STEPS = 30


def kill_after(words: list[str], lines: int, work_dir: Path, world_size: int, victim: int) -> None:
    """Start a run and SIGKILL one of its ranks once it has logged so many steps."""
    progress = Progress(work_dir)
    processes = start_ranks(quadriga(*words), world_size)
    try:
        assert progress.wait(processes[0], lines), processes[0].communicate()[1]
        processes[victim].send_signal(signal.SIGKILL)
        assert processes[victim].wait(30) == -signal.SIGKILL
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(("lines", "workers"), [(2, 0), (11, 0), (17, 2)])
def test_killed_and_resumed_is_never_interrupted(tmp_path: Path, lines: int, workers: int) -> None:
    common = ["checkpoint.every_steps=4", f"loader.workers={workers}", "model.drop_path=0.3"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert run(tiny_run(straight, STEPS, *common)) == 0
    kill_after(tiny_run(killed, STEPS, *common), lines, killed, 1, 0)
    assert len(read_metrics(killed)) < STEPS, "the run was over before the kill"
    assert run(tiny_run(killed, STEPS, *common, "--resume")) == 0
    assert len(read_metrics(straight)) == STEPS
    assert_same_run(killed, straight, STEPS)


def test_two_ranks_resume_bit_identically_and_one_rank_goes_on(tmp_path: Path) -> None:
    """With shards of everything; replicas are what the test of verify-resume interrupts."""
    common = ["checkpoint.every_steps=4", "loader.workers=0", "train.parallel=fsdp"]
    common += ["ema.decay=0.99", "optim.clip_norm=0.5"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for rank in run_ranks(quadriga(*tiny_run(straight, STEPS, *common)), 2):
        assert rank.returncode == 0, rank.stderr
    kill_after(tiny_run(killed, STEPS, *common), 9, killed, 2, 1)
    for rank in run_ranks(quadriga(*tiny_run(killed, STEPS, *common, "--resume")), 2):
        assert rank.returncode == 0, rank.stderr
    assert_same_run(killed, straight, STEPS)
    alone = tmp_path / "alone"
    start = killed / "checkpoints" / "step_00000028"
    assert run(tiny_run(alone, STEPS, *common, "--resume", str(start))) == 0
    ends = [read_metrics(path)[-1] for path in (alone, straight)]
    assert ends[0]["samples"] == ends[1]["samples"]
    assert ends[0]["loss"] == pytest.approx(ends[1]["loss"], rel=1e-4)


def test_a_finished_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 3)) == 0
    before = (work_dir / "metrics.jsonl").read_bytes()
    for words in ([], ["--resume"]):
        capsys.readouterr()
        assert run(tiny_run(work_dir, 3, *words)) == 0
        assert "finished" in capsys.readouterr().out
    assert (work_dir / "metrics.jsonl").read_bytes() == before


def test_an_unfinished_run_wants_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work_dir = tmp_path / "run"
    kill_after(tiny_run(work_dir, 200, "checkpoint.every_steps=2"), 9, work_dir, 1, 0)
    capsys.readouterr()
    words = tiny_run(work_dir, 200, "checkpoint.every_steps=2")
    assert_command_refused(words, capsys, work_dir, "--resume")


def test_two_runs_cannot_share_a_work_dir(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from quadriga.engine.logs.directory import RunDirectory

    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 1)) == 0
    with RunDirectory(work_dir).lock():
        assert_command_refused(tiny_run(work_dir, 1), capsys, work_dir, "in use")


def test_a_run_goes_on_with_other_micro_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All draws belong to samples but dropout, of which the run says so."""
    common = ["checkpoint.every_steps=4", "loader.workers=0", "model.drop_path=0.3"]
    for name, more in (("plain", []), ("dropout", ["model.dropout=0.2"])):
        straight, cut = tmp_path / name, tmp_path / f"{name}_cut"
        assert run(tiny_run(straight, 8, *common, *more)) == 0
        shutil.copytree(straight, cut)
        shutil.rmtree(cut / "checkpoints" / "step_00000008")
        capsys.readouterr()
        words = tiny_run(cut, 8, *common, *more, "train.accumulate=4", "--resume")
        assert run(words) == 0
        said = capsys.readouterr().err
        ends = [read_metrics(path)[-1] for path in (cut, straight)]
        assert ends[0]["samples"] == ends[1]["samples"]
        if name == "dropout":
            assert_says(said, "dropout", "train.accumulate=1", "step 4")
            assert ends[0]["loss"] != pytest.approx(ends[1]["loss"], rel=1e-6)
        else:
            assert "dropout" not in said
            assert ends[0]["loss"] == pytest.approx(ends[1]["loss"], rel=1e-4)
