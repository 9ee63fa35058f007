"""What a checkpoint holds, read by one process: its headers, and the tensors of its model."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from quadriga.engine.checkpoint.folder import (
    MANIFEST,
    InvalidCheckpoint,
    list_checkpoints,
    newest_valid,
    verify,
)
from quadriga.errors import UserError

Weights = Literal["raw", "ema"]
"""The weights of a step, or their exponential moving average."""

OBJECTIVE = "objective."
EMA = "ema."
OPTIMIZER = "optimizer."

_NAME = re.compile(r"step_\d+")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a checkpoint, whole, however many shards it lies in."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def part(self) -> str:
        """What the tensor belongs to: objective, optimizer, ema or executor."""
        return self.name.partition(".")[0]

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.elements * self.dtype.itemsize


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """Read the headers of a checkpoint's shards; return its tensors, sorted by name.

    Raises:
        InvalidCheckpoint: A header is damaged.
    """
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    # A damaged header fails wherever its bytes lead the reader: there is no list of errors.
    except Exception as error:
        raise InvalidCheckpoint(f"its headers cannot be read ({error})") from error
    return [
        StoredTensor(name=name, shape=tuple(entry.size), dtype=entry.properties.dtype)
        for name, entry in sorted(stored.items())
        if isinstance(entry, TensorStorageMetadata)
    ]


def trainable_elements(tensors: Sequence[StoredTensor]) -> int:
    """Return how many values of the objective the optimizer has state for."""
    states = {tensor.name for tensor in tensors if tensor.name.startswith(OPTIMIZER)}
    trained = {name.removeprefix(OPTIMIZER).rpartition(".")[0] for name in states}
    return sum(t.elements for t in tensors if t.name.removeprefix(OBJECTIVE) in trained)


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint's folder, be it whole or not."""
    return path.is_dir() and bool((path / MANIFEST).is_file() or _NAME.fullmatch(path.name))


def checkpoints_of(path: Path) -> list[Path]:
    """Return the checkpoints that a path stands for, newest first.

    Args:
        path: A checkpoint, a run, or the folder ``checkpoints`` of one.

    Raises:
        UserError: There is none.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run or a checkpoint of one")
    if is_checkpoint(path):
        return [path]
    found = list_checkpoints(_folder_of(path))
    if not found:
        raise UserError(
            f"{path} holds no checkpoint; name a run, or a folder such as "
            "RUN/checkpoints/step_00001000"
        )
    return found


def whole_checkpoint(path: Path, warn: Callable[[str], None]) -> Path:
    """Return the checkpoint that a path stands for, its files verified: of a run the newest.

    Args:
        path: As for `checkpoints_of`.
        warn: Told which checkpoints of a run are passed over and why.

    Raises:
        UserError: There is none, or none is whole.
    """
    found = checkpoints_of(path)
    if is_checkpoint(path):
        try:
            verify(path)
        except InvalidCheckpoint as error:
            raise UserError(f"checkpoint {path} is damaged: {error}; choose another") from error
        return path
    newest = newest_valid(found[0].parent, warn)
    if newest is None:
        raise UserError(f"no checkpoint of {path} is whole (see the warnings above)")
    return newest


def _folder_of(path: Path) -> Path:
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def read_model(folder: Path, weights: Weights, option: str) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint's objective to the CPU, whole, in this process alone.

    Args:
        folder: A verified checkpoint.
        weights: With "ema" the trainable parameters are their moving averages; the rest, which
            has none, is that of the step.
        option: How the user sets `weights`, for the error sentence.

    Returns:
        The tensors by their names in the objective, in the types they were saved in.

    Raises:
        UserError: There is no moving average, or a file cannot be read.
    """
    try:
        stored = {tensor.name: tensor for tensor in stored_tensors(folder)}
    except InvalidCheckpoint as error:
        raise UserError(f"checkpoint {folder} is damaged: {error}; choose another") from error
    source = {name.removeprefix(OBJECTIVE): name for name in stored if name.startswith(OBJECTIVE)}
    if weights == "ema":
        averages = {name.removeprefix(EMA): name for name in stored if name.startswith(EMA)}
        if not averages:
            raise UserError(
                f"{option} must be raw for checkpoint {folder}, but is ema: it holds no moving "
                "average (ema.decay was not set)"
            )
        source.update(averages)
    state = _read(folder, [stored[name] for name in source.values()])
    return {name: state[stored_name] for name, stored_name in source.items()}


def read_stored(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read some tensors of a checkpoint to the CPU, whole, in this process alone.

    Args:
        folder: A whole checkpoint.
        names: As in `StoredTensor.name`.

    Raises:
        InvalidCheckpoint: A header is damaged.
        UserError: A file cannot be read.
    """
    wanted = set(names)
    return _read(folder, [tensor for tensor in stored_tensors(folder) if tensor.name in wanted])


def _read(folder: Path, tensors: Sequence[StoredTensor]) -> dict[str, Tensor]:
    state: dict[str, Any] = {t.name: torch.empty(t.shape, dtype=t.dtype) for t in tensors}
    if not state:
        return state
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except OSError as error:
        raise UserError(f"checkpoint {folder} cannot be read: {error}") from error
    return state
