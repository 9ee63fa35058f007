"""Tiny runs for tests: seconds, not minutes, through the paths of the large ones."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

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
    lines = (work_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def read_checkpoint(work_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint, whole, whatever layout saved it."""
    folder = work_dir / "checkpoints" / f"step_{step:08d}"
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(s.size, dtype=s.properties.dtype) for name, s in stored.items()}
    assert tensors, f"{folder} holds no tensors"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def assert_bit_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Check that two checkpoints hold the same names and the same bits."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs"
