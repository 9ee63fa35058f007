"""What lies at a path that a config names: a run, a checkpoint or a file, as a `WeightSource`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quadriga.contracts import WeightSource
from quadriga.engine.checkpoint_contents import (
    Weights,
    checkpoints_of,
    read_model,
    whole_checkpoint,
)
from quadriga.errors import UserError
from quadriga.weights.files import check_suffix, read_weights

_FILES = ("model.safetensors", "pytorch_model.bin")
"""What the weights are called in the folder of a published model."""


def weights_of(path: Path) -> Path:
    """Return the file of weights in the folder of a published model, else the path itself."""
    if not (path / "checkpoints").is_dir():
        for name in _FILES:
            if (path / name).is_file():
                return path / name
    return path


def check_source(path: Path | str, option: str) -> None:
    """Check what can be checked at once: nothing is hashed, and no tensor is read.

    Args:
        path: A run, a checkpoint, a file, or the folder of a published model.
        option: What the user set, for the error sentence.

    Raises:
        UserError: It is missing, no file of weights, or holds no checkpoint.
    """
    found = weights_of(Path(path))
    try:
        if found.is_dir():
            checkpoints_of(found)
        elif not found.exists():
            raise UserError(
                f"{found} does not exist; name a run, a checkpoint or a file of weights"
            )
        else:
            check_suffix(found)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def read_source(
    path: Path | str,
    option: str,
    warn: Callable[[str], None] = lambda text: None,
    weights: Weights = "raw",
) -> WeightSource:
    """Read a run, a checkpoint or a file to the CPU, in this process alone.

    Args:
        path: A run (its newest whole checkpoint is taken), a checkpoint, a file of weights, or
            the folder of a published model.
        option: What the user set, such as ``modular.meta``, for the error sentence.
        warn: Told which checkpoints of a run are passed over and why.
        weights: What of a checkpoint is taken.

    Returns:
        Of a file in the modular layout `stages`, and in `tensors` the same under timm's names of
        the whole. Of other files the tensors under the file's names.

    Raises:
        UserError: It is missing, damaged, or holds no weights; the sentence begins with `option`.
    """
    check_source(path, option)
    found = weights_of(Path(path))
    try:
        if not found.is_dir():
            content = read_weights(found)
            return WeightSource(
                path=Path(path),
                tensors=content.tensors,
                config=None,
                stages=content.stages,
                notes=content.notes,
            )
        folder = whole_checkpoint(found, warn)
        return WeightSource(
            path=Path(path),
            tensors=read_model(folder, weights, f"{option} (weights)"),
            config=_config_beside(folder),
        )
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def _config_beside(checkpoint: Path) -> Mapping[str, Any] | None:
    """Return the values in the config.json of the run that a checkpoint lies in, if it does."""
    path = checkpoint.parent.parent / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    values = content.get("config") if isinstance(content, dict) else None
    return values if isinstance(values, dict) else None
