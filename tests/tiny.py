"""Tiny runs for tests: seconds, not minutes, through the paths of the large ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from quadriga.verify_resume.compare import (
    EQUAL,
    Comparison,
    compare,
    read_run,
    read_tensors,
    without_clock,
)

TINY = (
    "model.width=16",
    "model.depth=2",
    "model.heads=2",
    "model.image_px=16",
    "views.image_px=16",
    "data.image_px=16",
    "objective.decoder_width=16",
    "objective.decoder_depth=1",
    "objective.decoder_heads=2",
    "train.batch_size=8",
    "train.epochs=none",
    "schedule.warmup_epochs=0",
    "log.every_steps=1",
    "log.loggers=[]",
    "train.device=cpu",
    "train.ranks=1",
    "train.precision=float32",
    "evaluation.protocols=[]",
    "checkpoint.every_epochs=none",
)
"""Overrides that make `mae_digits` a run of milliseconds per step."""

TIMES = (
    "step_seconds",
    "data_wait_share",
    "communication_share",
    "checkpoint_stall_share",
    "samples_per_second",
    "tokens_per_second",
    "flops_per_second",
    "mfu",
    "memory_gib",
    "memory_peak_gib",
    "eta_seconds",
)
"""Fields of metrics.jsonl that depend on the clock and the machine."""


def tiny_run(work_dir: Path, steps: int, *words: str) -> list[str]:
    """Return the words of a command that trains a tiny MAE on the digits."""
    own = [
        word for word in TINY if word.partition("=")[0] not in {w.partition("=")[0] for w in words}
    ]
    return [
        "train",
        "mae_digits",
        f"train.steps={steps}",
        *own,
        *words,
        "--work-dir",
        str(work_dir),
    ]


def read_metrics(work_dir: Path) -> list[dict[str, Any]]:
    """Return the logged steps without the fields that depend on the clock."""
    rows = map(json.loads, (work_dir / "metrics.jsonl").read_text().splitlines())
    return [without_clock(row) for row in rows if "lr" in row]  # the others are of evaluations


def read_checkpoint(work_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint, whole, whatever layout saved it."""
    tensors = read_tensors(work_dir / "checkpoints" / f"step_{step:08d}")
    assert tensors, f"{work_dir} holds no tensors"
    return tensors


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Check that two runs of `step` steps left the same state and metrics, bit for bit."""
    found = compare(read_run(one, step), read_run(other, step))
    assert found == Comparison(EQUAL, EQUAL, EQUAL, EQUAL)


def assert_bit_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Check that two checkpoints hold the same names and the same bits."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs"
