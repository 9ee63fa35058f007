"""Reading of checkpoints: into a model's tensors on any layout of ranks, or in one process.

Each rank reads its own tensors; the only collective is the final error check.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quadriga.distributed.allocator import is_out_of_memory
from quadriga.distributed.collectives import all_gather_values, on_all
from quadriga.distributed.environment import DistEnv
from quadriga.engine.checkpoint.folder import (
    MANIFEST,
    InvalidCheckpoint,
    list_checkpoints,
    read_manifest,
    verify,
)
from quadriga.engine.step.state import OPTIMIZER
from quadriga.errors import UserError


def read_names(path: Path, env: DistEnv) -> list[str]:
    """Return the names of a checkpoint's tensors; every rank calls it.

    Raises:
        UserError: A file cannot be read; raised on every rank.
    """
    return on_all(lambda: list(_stored(path)), env)


def read_state(path: Path, state: dict[str, Any], env: DistEnv, complete: bool) -> None:
    """Read tensors in place; every rank calls it.

    Args:
        path: A verified checkpoint.
        state: Name -> tensor; a DTensor gets this rank's shard.
        env: The ranks.
        complete: Whether it is an error if the checkpoint holds other tensors.

    Raises:
        UserError: The tensors are not those of the checkpoint, or a file cannot be read.
    """
    known = None
    if complete:  # ranks of different stages hold different tensors: take the union
        known = set[str]().union(*all_gather_values(list(state), env))
    on_all(lambda: _read(path, state, known), env)


def read_objective(
    path: Path, objective: nn.Module, env: DistEnv, weights: Literal["raw", "ema"] = "raw"
) -> int:
    """Read the objective without the optimizer; every rank calls it.

    Args:
        path: A verified checkpoint.
        objective: Changed in place.
        env: The ranks.
        weights: "raw" for the weights of the last step, "ema" for the moving average of the
            trainable parameters.

    Returns:
        The number of finished steps.

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
    with _readable(path):
        _load(path, state)


def _stored(path: Path) -> dict[str, Any]:
    """Return name -> metadata of each tensor, from the files' headers."""
    with _readable(path):
        return _headers(path)


# torch.distributed.checkpoint is imported when it is first used: it takes half as long as torch.


def _headers(path: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata


def _load(path: Path, state: dict[str, Any]) -> None:
    """Read tensors in place, without torch's warning that each rank loads by itself."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(state, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Return a context that turns read errors into a `UserError` naming the checkpoint."""
    try:
        yield
    except UserError:
        raise
    # A damaged header can raise any exception, depending on its bytes.
    except Exception as error:
        if is_out_of_memory(error):  # the files are whole
            raise
        raise UserError(
            f"checkpoint {path} cannot be read: {root_cause(error)}; name an older one with "
            "--resume, or restore its files"
        ) from error


def _check(
    path: Path, state: dict[str, Any], stored: dict[str, Any], known: set[str] | None
) -> None:
    """Check names and shapes; `known` is all that the checkpoint may hold, None for anything."""
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


def root_cause(error: BaseException) -> str:
    """Return the error of the first rank that failed, if torch has gathered the ranks' errors."""
    failures = getattr(error, "failures", None)
    if failures:
        inner = next(iter(failures.values()))
        return str(inner[0] if isinstance(inner, tuple) else inner)
    return str(error)


Weights = Literal["raw", "ema"]
"""raw: the weights of the step; ema: their exponential moving average."""

OBJECTIVE = "objective."
EMA = "ema."

_NAME = re.compile(r"step_\d+")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One full tensor of a checkpoint, whatever number of shards stores it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def part(self) -> str:
        """First part of the name: objective, optimizer, ema or executor."""
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
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        stored = _headers(folder)
    # A damaged header fails wherever its bytes lead the reader: there is no list of errors.
    except Exception as error:
        raise InvalidCheckpoint(f"its headers cannot be read ({error})") from error
    return [
        StoredTensor(name=name, shape=tuple(entry.size), dtype=entry.properties.dtype)
        for name, entry in sorted(stored.items())
        if isinstance(entry, TensorStorageMetadata)
    ]


def trainable_elements(tensors: Sequence[StoredTensor]) -> int:
    """Return the number of values of the objective that have optimizer state."""
    states = {tensor.name for tensor in tensors if tensor.name.startswith(OPTIMIZER)}
    trained = {name.removeprefix(OPTIMIZER).rpartition(".")[0] for name in states}
    return sum(t.elements for t in tensors if t.name.removeprefix(OBJECTIVE) in trained)


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint's folder, complete or not."""
    return path.is_dir() and bool((path / MANIFEST).is_file() or _NAME.fullmatch(path.name))


def checkpoints_of(path: Path) -> list[Path]:
    """Return the checkpoints at a path, newest first.

    Args:
        path: A checkpoint, a run, or the folder ``checkpoints`` of a run.

    Raises:
        UserError: The path does not exist or holds no checkpoint.
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


def whole_checkpoint(path: Path) -> Path:
    """Return the checkpoint at a path, or the newest one of a run, with its files verified.

    An older checkpoint never replaces a damaged one: what starts from a run would otherwise start
    from the weights of another step.

    Args:
        path: As for `checkpoints_of`.

    Raises:
        UserError: There is no checkpoint, or the newest is damaged.
    """
    newest = checkpoints_of(path)[0]
    try:
        verify(newest)
    except InvalidCheckpoint as error:
        raise damaged(newest, error) from error
    return newest


def damaged(checkpoint: Path, reason: InvalidCheckpoint) -> UserError:
    """Return the error for a damaged checkpoint, with the command that makes it anew."""
    run = checkpoint.absolute().parent.parent
    remedy = "name another one"
    if (run / "config.json").is_file():
        command = shlex.join(
            ["quadriga", "train", str(run / "config.json"), "--work-dir", str(run), "--resume"]
        )
        # Without an older one, a damaged one must not pass for the start of the run.
        only = len(list_checkpoints(checkpoint.parent)) < 2
        remedy = f"{'remove it, then ' if only else ''}make it anew with `{command}`, or {remedy}"
    return UserError(f"checkpoint {checkpoint} is damaged: {reason}; {remedy}")


def _folder_of(path: Path) -> Path:
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def read_model(folder: Path, weights: Weights, option: str) -> dict[str, Tensor]:
    """Read the full tensors of a checkpoint's objective to the CPU, without collectives.

    Args:
        folder: A verified checkpoint.
        weights: With "ema" the trainable parameters are their moving averages; all other tensors
            have none and are those of the step.
        option: The option that sets `weights`, for the error message.

    Returns:
        Name in the objective -> tensor, in the dtype it was saved in.

    Raises:
        UserError: There is no moving average, or a file cannot be read.
    """
    try:
        stored = {tensor.name: tensor for tensor in stored_tensors(folder)}
    except InvalidCheckpoint as error:
        raise damaged(folder, error) from error
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
    """Read some full tensors of a checkpoint to the CPU, without collectives.

    Args:
        folder: A complete checkpoint.
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
    with _readable(folder):
        _load(folder, state)
    return state
