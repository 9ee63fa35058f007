"""Starting from weights that exist: of a file, of a checkpoint, or of another run.

It happens once, at step 0 and not on resumption, after every tensor has got its random value and
before the executor takes the objective.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from quadriga.distributed.collectives import from_main, on_all
from quadriga.distributed.environment import DistEnv
from quadriga.engine.checkpoint.store import MANIFEST, InvalidCheckpoint, read_manifest
from quadriga.engine.checkpoint_contents import (
    EMA,
    checkpoints_of,
    read_model,
    stored_tensors,
    whole_checkpoint,
)
from quadriga.engine.run_config import WarmStartConfig
from quadriga.engine.weight_sources import weights_of
from quadriga.errors import UserError
from quadriga.weights import Remedies, WeightReport, load_tensors
from quadriga.weights.files import check_suffix, read_tensors

_SWITCHES = Remedies(
    loose="set warm_start.strict=false", resample="set warm_start.interpolate=true"
)


@dataclass(frozen=True)
class _Source:
    """What a path stands for, the same on every rank."""

    path: Path
    """A file of weights, or a verified checkpoint."""
    is_file: bool
    detail: str


def check_warm_start(config: WarmStartConfig) -> None:
    """Check what can be checked at once: nothing is hashed, and no tensor is read.

    Raises:
        UserError: ``warm_start.path`` is missing, no file of weights, or holds no checkpoint with
            a manifest; or a moving average is asked for where there is none.
    """
    if config.path is None:
        return
    path = weights_of(Path(config.path))
    try:
        if path.is_dir():
            _check_checkpoints(path, config)
            return
        if not path.exists():
            raise UserError(f"{path} does not exist; name a file of weights, a checkpoint or a run")
        check_suffix(path)
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"warm_start.path: {path} cannot be read: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"warm_start.path: {error}") from error
    _check_raw(path, config)


def _check_checkpoints(path: Path, config: WarmStartConfig) -> None:
    problems = []
    for folder in checkpoints_of(path):
        try:
            read_manifest(folder)
            tensors = stored_tensors(folder)
        except InvalidCheckpoint as error:
            problems.append(f"{folder.name}: {error}")
            continue
        if config.weights == "ema" and not any(t.name.startswith(EMA) for t in tensors):
            raise UserError(
                f"{folder} holds no moving average (its run had no ema.decay); set "
                "warm_start.weights=raw"
            )
        return
    raise UserError(f"{path} holds no whole checkpoint ({'; '.join(problems)})")


def _check_raw(path: Path, config: WarmStartConfig) -> None:
    if config.weights == "ema":
        raise UserError(
            f"warm_start.weights must be raw for a file of weights ({path}), but is ema; only "
            "checkpoints hold a moving average beside the weights"
        )


def warm_start(
    config: WarmStartConfig,
    objective: nn.Module,
    env: DistEnv,
    warn: Callable[[str], None],
) -> WeightReport | None:
    """Fill an objective from ``warm_start.path``; every rank calls it and fills its own copy.

    Rank 0 decides which checkpoint is taken, so that all ranks take the same one even while
    another run is writing there.

    Args:
        config: What to start from.
        objective: The whole objective with its initial values, on any device.
        env: The ranks.
        warn: Told which checkpoints of a run are passed over and why.

    Returns:
        What became of each tensor, the same on every rank; None without a path.

    Raises:
        UserError: The weights cannot be read or do not fit; on every rank.
    """
    if config.path is None:
        return None
    given = weights_of(Path(config.path))
    source = from_main(lambda: _resolve(given, config, warn), env)

    def fill() -> WeightReport:
        if source.is_file:
            tensors = read_tensors(source.path)
        else:
            tensors = read_model(source.path, config.weights, "warm_start.weights")
        return load_tensors(
            objective,
            tensors,
            source.path,
            "auto" if source.is_file else "quadriga",
            strict=config.strict,
            interpolate=config.interpolate,
            remedies=_SWITCHES,
            detail=source.detail,
        )

    return on_all(fill, env)


def _resolve(path: Path, config: WarmStartConfig, warn: Callable[[str], None]) -> _Source:
    """Return what a path stands for, verified, with the digest of its content."""
    check_warm_start(config)
    if not path.is_dir():
        return _Source(path, True, f"SHA-256 {_digest(path)}")
    folder = whole_checkpoint(path, warn)
    step = read_manifest(folder).step
    average = ", moving average" if config.weights == "ema" else ""
    # The manifest has the digests of all shards: its own stands for the checkpoint.
    return _Source(folder, False, f"step {step}{average}, SHA-256 {_digest(folder / MANIFEST)}")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
