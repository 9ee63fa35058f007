"""``log.txt`` beside files in the published modular layout: one JSON object per epoch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quadriga.engine.build import build_on_meta
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.modular_contents import whole_names
from quadriga.engine.modular_files_config import ModularFilesConfig
from quadriga.files import write_text

LOG = "log.txt"


def log_epoch(
    config: ModularFilesConfig, directory: RunDirectory, step: int, numbers: Mapping[str, float]
) -> None:
    """Write the line of an epoch into log.txt, in place of one that is there of it or later.

    ``train_loss`` is the mean over the epoch's logged steps.

    Args:
        config: Which file.
        directory: The run.
        step: Finished steps.
        numbers: What the evaluation found: ``held_out.loss`` and the like.

    Raises:
        OSError: The file cannot be written.
    """
    epoch = config.epoch_at(step)
    if epoch is None or "held_out.loss" not in numbers:
        return
    logged = [
        row
        for row in _json_lines(directory.metrics)
        if step - config.epoch_steps < row.get("step", 0) <= step
    ]
    losses = [row["loss"] for row in logged if "loss" in row]
    first = 100 * numbers["held_out.accuracy"]
    line = {
        "train_lr": logged[-1]["lr"] if logged else None,
        "train_loss": sum(losses) / len(losses) if losses else None,
        "test_loss": numbers["held_out.loss"],
        "test_acc1": first,
        # Where there are five classes or fewer, every answer is among the first five.
        "test_acc5": 100 * numbers.get("held_out.accuracy_5", 1.0),
        "epoch": epoch,
        "n_parameters": _parameters(config, directory),
    }
    kept = [row for row in _json_lines(config.folder / LOG) if row.get("epoch", epoch) < epoch]
    text = "".join(json.dumps(row) + "\n" for row in (*kept, line))
    write_text(config.folder / LOG, text)


def _parameters(config: ModularFilesConfig, directory: RunDirectory) -> int:
    """Return the number of parameters of the model that is run, frozen ones too."""
    objective = build_on_meta(directory.read_config().config)
    return sum(
        p.numel() for p in whole_names(config.depths, dict(objective.named_parameters())).values()
    )


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                rows += [row] if isinstance(row, dict) else []
    return rows
