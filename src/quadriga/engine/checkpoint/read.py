"""Tensors out of a checkpoint, into those of a model, on any layout.

Each rank reads what it needs by itself: nothing here waits for another rank but the last word on
whether all went well.

What a checkpoint holds, read by one process: its headers, and the tensors of its model.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from quadriga.distributed.collectives import all_gather_values, on_all
from quadriga.distributed.environment import DistEnv
from quadriga.engine.checkpoint.folder import (
    MANIFEST,
    InvalidCheckpoint,
    list_checkpoints,
    newest_valid,
    read_manifest,
    verify,
)
from quadriga.engine.step.state import OPTIMIZER
from quadriga.errors import UserError


def read_names(path: Path, env: DistEnv) -> list[str]:
    """Return the names of a checkpoint's tensors; every rank calls it.

    Raises:
        UserError: A file cannot be read.
    """
    return on_all(lambda: list(_stored(path)), env)


def read_state(path: Path, state: dict[str, Any], env: DistEnv, complete: bool) -> None:
    """Read tensors in place; every rank calls it.

    Args:
        path: A verified checkpoint.
        state: Tensors by name; DTensors take this rank's shard.
        env: The ranks.
        complete: Whether the checkpoint must hold nothing else.

    Raises:
        UserError: The tensors are not those of the checkpoint, or a file cannot be read.
    """
    known = None
    if complete:  # stages hold different tensors: all of them together are the run's
        known = set[str]().union(*all_gather_values(list(state), env))
    on_all(lambda: _read(path, state, known), env)


def read_objective(
    path: Path, objective: nn.Module, env: DistEnv, weights: Literal["raw", "ema"] = "raw"
) -> int:
    """Read the objective alone, without the optimizer; every rank calls it.

    Args:
        path: A verified checkpoint.
        objective: Takes the weights, in place.
        env: The ranks.
        weights: Those of the last step, or the moving average of what is trained.

    Returns:
        The number of steps that were made.

    Raises:
        UserError: The tensors are not those of this model, or there is no moving average.
    """
    trained = {n for n, p in objective.named_parameters() if p.requires_grad}
    prefixes = {name: "ema" for name in trained if weights == "ema"}
    state = {
        f"{prefixes.get(name, 'objective')}.{name}": tensor
        for name, tensor in objective.state_dict().items()
    }
    read_state(path, state, env, complete=False)
    return read_manifest(path).step


def _read(path: Path, state: dict[str, Any], known: set[str] | None) -> None:
    _check(path, state, _stored(path), known)
    with _readable(path), _quiet():
        load(state, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)


def _stored(path: Path) -> dict[str, Any]:
    """Return what the headers say of each tensor."""
    with _readable(path):
        return HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say of an error inside that the checkpoint cannot be read."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        raise UserError(
            f"checkpoint {path} cannot be read: {root_cause(error)}; name an older one with "
            "--resume, or restore its files"
        ) from error


def _check(
    path: Path, state: dict[str, Any], stored: dict[str, Any], known: set[str] | None
) -> None:
    """Check names and shapes; `known`: all that the checkpoint may hold, None for anything."""
    for name in sorted(state.keys() - stored if known is None else stored.keys() ^ known):
        where = "the run does not have it" if name in stored else "the checkpoint lacks it"
        raise UserError(f"checkpoint {path} is of another model: tensor {name}: {where}")
    for name, tensor in state.items():
        size = getattr(stored[name], "size", None)
        if size is not None and tuple(size) != tuple(tensor.shape):
            raise UserError(
                f"checkpoint {path} is of another model: tensor {name} has shape "
                f"{list(size)} instead of {list(tensor.shape)}"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out torch's warning that each rank loads by itself, which is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def root_cause(error: BaseException) -> str:
    """Return what went wrong on the first rank that failed, where torch has gathered it."""
    failures = getattr(error, "failures", None)
    if failures:
        inner = next(iter(failures.values()))
        return str(inner[0] if isinstance(inner, tuple) else inner)
    return str(error)


Weights = Literal["raw", "ema"]
"""The weights of a step, or their exponential moving average."""

OBJECTIVE = "objective."
EMA = "ema."

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
        ema_names = {name.removeprefix(EMA): name for name in stored if name.startswith(EMA)}
        if not ema_names:
            raise UserError(
                f"{option} must be raw for checkpoint {folder}, but is ema: it holds no moving "
                "average (ema.decay was not set)"
            )
        source.update(ema_names)
    state = _read_tensors(folder, [stored[name] for name in source.values()])
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
    return _read_tensors(
        folder, [tensor for tensor in stored_tensors(folder) if tensor.name in wanted]
    )


def _read_tensors(folder: Path, tensors: Sequence[StoredTensor]) -> dict[str, Tensor]:
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
