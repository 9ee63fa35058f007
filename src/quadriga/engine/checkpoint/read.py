"""Tensors out of a checkpoint, into those of a model, on any layout.

Each rank reads what it needs by itself: nothing here waits for another rank but the last word on
whether all went well.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from quadriga.distributed.collectives import all_gather_values, on_all
from quadriga.distributed.environment import DistEnv
from quadriga.engine.checkpoint.folder import read_manifest
from quadriga.errors import UserError


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
    averaged = {n for n, p in objective.named_parameters() if p.requires_grad}
    prefixes = {name: "ema" for name in averaged if weights == "ema"}
    state = {
        f"{prefixes.get(name, 'objective')}.{name}": tensor
        for name, tensor in objective.state_dict().items()
    }
    read_state(path, state, env, complete=False)
    return read_manifest(path).step


def _read(path: Path, state: dict[str, Any], known: set[str] | None) -> None:
    try:
        reader = HuggingFaceStorageReader(str(path))
        stored = reader.read_metadata().state_dict_metadata
        _check(path, state, stored, known)
        with _quiet():
            load(state, storage_reader=reader, no_dist=True)
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
