"""A run that does not fit the memory of its process says so in one line."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from errors import assert_refused
from quadriga.engine.logs.results import read_records
from ranks import quadriga
from tiny import tiny_run

LIMIT = 1240 << 20
"""Bytes of data for each process: less than weights, gradients and moments of 85 M parameters
(1.27 GiB), more than a quarter of them, the interpreter and torch."""
MODEL = ("model.width=768", "model.depth=12", "model.heads=12")
SHORT = (
    "objective.decoder_width=32",
    "objective.decoder_depth=1",
    "objective.decoder_heads=2",
    "train.batch_size=8",
    "train.epochs=none",
    "train.steps=2",
    "train.device=cpu",
    "train.ranks=4",
    "train.parallel=fsdp",
    "schedule.warmup_epochs=0",
    "checkpoint.every_epochs=none",
    "checkpoint.every_steps=1",
    "log.loggers=[]",
    "loader.workers=0",
    "evaluation.workers=0",
    "evaluation.train_samples=64",
    "evaluation.test_samples=32",
)
"""Two steps on four ranks with shards, each saved; the last is evaluated."""


@pytest.mark.long
def test_weights_and_moments_beyond_the_limit_are_named(tmp_path: Path) -> None:
    words = tiny_run(tmp_path / "run", 2, *MODEL)
    done = _limited(*words)
    assert_refused(done, "memory", "train.parallel=fsdp")


@pytest.mark.long
def test_shards_of_what_no_rank_could_hold_train_evaluate_and_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", "mae_digits", *MODEL, *SHORT, "--work-dir", str(run)]
    done = _limited(*words)
    assert done.returncode == 0, done.stderr
    whole = _results(run)
    assert whole
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    shutil.rmtree(run / "report")
    done = _limited(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert _results(run) == whole
    done = _limited("eval", str(run), "knn", "train.parallel=ddp", "--again", limit=700 << 20)
    assert_refused(done, "memory", "train.parallel=fsdp")


def _limited(*words: str, limit: int = LIMIT) -> subprocess.CompletedProcess[str]:
    """Run a command whose processes may each hold `limit` bytes of data."""
    return subprocess.run(
        quadriga(*words),
        capture_output=True,
        text=True,
        timeout=280,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )


def _results(run: Path) -> object:
    """Return what the protocols found at the last step."""
    return [record.metrics for record in read_records(run / "report")]
