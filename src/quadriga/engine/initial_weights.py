"""Initial weights of a run from other sources than random initialisation.

The sources (a run, a checkpoint, a file) are checked before the start. They are loaded once, at
step 0 and not on resumption, after random initialisation and before training.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quadriga.contracts import FrozenSource, Objective, WeightSource
from quadriga.distributed.collectives import from_main, on_all
from quadriga.distributed.environment import DistEnv
from quadriga.engine.checkpoint.read import (
    EMA,
    Weights,
    checkpoints_of,
    damaged,
    read_model,
    stored_tensors,
    whole_checkpoint,
)
from quadriga.engine.checkpoint.store import MANIFEST, InvalidCheckpoint, read_manifest
from quadriga.engine.run_config import RunConfig, WarmStartConfig
from quadriga.errors import UserError
from quadriga.files import parse_json
from quadriga.weights import Remedies, WeightReport, load_tensors
from quadriga.weights.files import check_suffix, read_weights

_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights' file in the folder of a published model."""


def weights_of(path: Path) -> Path:
    """Return the file of weights in the folder of a published model; any other path unchanged."""
    if not (path / "checkpoints").is_dir():
        for name in _FILES:
            if (path / name).is_file():
                return path / name
    return path


def check_source(path: Path | str, option: str) -> None:
    """Check a source quickly, without hashing a file or reading a tensor.

    Args:
        path: A run, a checkpoint, a file, or the folder of a published model.
        option: The option that names the path, for the error message.

    Raises:
        UserError: It is missing, not a file of weights, or holds no checkpoint.
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
    weights: Weights = "raw",
) -> WeightSource:
    """Read a run, a checkpoint or a file to the CPU, without collectives.

    Args:
        path: A run (its newest checkpoint is read), a checkpoint, a file of weights, or the folder
            of a published model.
        option: The option that names the path, such as ``modular.meta``, for the error message.
        weights: Raw or averaged weights of a checkpoint.

    Returns:
        For a file in the modular layout: `stages`, and in `tensors` the same under timm's names of
        the whole model. For other files the tensors under the file's names.

    Raises:
        UserError: It is missing, damaged, or holds no weights; the message begins with `option`.
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
        folder = whole_checkpoint(found)
        return WeightSource(
            path=Path(path),
            tensors=read_model(folder, weights, f"{option} (weights)"),
            config=_config_beside(folder),
        )
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def _config_beside(checkpoint: Path) -> Mapping[str, Any] | None:
    """Return the values in the config.json of the checkpoint's run; None if there is none."""
    path = checkpoint.parent.parent / "config.json"
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    values = content.get("config") if isinstance(content, dict) else None
    return values if isinstance(values, dict) else None


_SWITCHES = Remedies(
    loose="set warm_start.strict=false", resample="set warm_start.interpolate=true"
)


@dataclass(frozen=True)
class _Source:
    """The file or checkpoint that a path resolves to, the same on every rank."""

    path: Path
    """A file of weights, or a verified checkpoint."""
    is_file: bool
    detail: str


def check_warm_start(config: WarmStartConfig) -> None:
    """Check ``warm_start`` quickly, without hashing a file or reading a tensor.

    Raises:
        UserError: ``warm_start.path`` is missing, not a file of weights, or its newest checkpoint
            has no manifest; or ``warm_start.weights`` is ema and there is no moving average.
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
    newest = checkpoints_of(path)[0]
    try:
        read_manifest(newest)
        tensors = stored_tensors(newest)
    except InvalidCheckpoint as error:
        raise damaged(newest, error) from error
    if config.weights == "ema" and not any(t.name.startswith(EMA) for t in tensors):
        raise UserError(
            f"{newest} holds no moving average (its run had no ema.decay); set "
            "warm_start.weights=raw"
        )


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
) -> WeightReport | None:
    """Load ``warm_start.path`` into an objective; every rank calls it and fills its own copy.

    Rank 0 selects the checkpoint, so that all ranks read the same one even while another run
    writes new ones.

    Args:
        config: What to start from.
        objective: The whole objective with its initial values, on any device.
        env: The ranks.

    Returns:
        Which tensors were loaded, resampled or skipped, the same on every rank; None without a
        path.

    Raises:
        UserError: The weights cannot be read or do not fit; raised on every rank.
    """
    if config.path is None:
        return None
    path = weights_of(Path(config.path))
    source = from_main(lambda: _resolve(path, config), env)

    def fill() -> WeightReport:
        tensors: Mapping[str, Tensor]
        group = ""
        if source.is_file:
            content = read_weights(source.path)
            tensors, group = content.tensors, content.group
        else:
            tensors = read_model(source.path, config.weights, "warm_start.weights")
        target, is_own = objective, not source.is_file
        if config.part != "all":
            target, tensors, found = _encoder_alone(config.part, objective, tensors, path)
            is_own = is_own or found
        return load_tensors(
            target,
            tensors,
            source.path,
            "quadriga" if is_own else "auto",
            strict=config.strict,
            interpolate=config.interpolate,
            remedies=_SWITCHES,
            detail=source.detail,
            group=group,
        )

    return on_all(fill, env)


_PREFIXES = {"encoder": "encoder.", "teacher": "teacher_encoder."}
"""Before the names of the tensors of a part, in this project's names."""


def _encoder_alone(
    part: str, objective: nn.Module, tensors: Mapping[str, Tensor], path: Path
) -> tuple[nn.Module, Mapping[str, Tensor], bool]:
    """Return an objective's encoder, the tensors for it, and whether this project has named them.

    Raises:
        UserError: The objective has no encoder, or the weights have no teacher.
    """
    encoder = getattr(objective, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise UserError(
            f"warm_start.part must be all for {type(objective).__name__}, which has no encoder of "
            f"its own, but is {part}"
        )
    prefix = _PREFIXES[part]
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if own.keys() & encoder.state_dict().keys():
        return encoder, own, True
    if part == "teacher":
        raise UserError(
            f"warm_start.part must be encoder or all for {path}, which has no teacher under this "
            "project's names, but is teacher"
        )
    return encoder, tensors, False


def _resolve(path: Path, config: WarmStartConfig) -> _Source:
    """Return the verified file or checkpoint at a path, with the digest of its content."""
    check_warm_start(config)
    if not path.is_dir():
        return _Source(path, True, f"SHA-256 {_digest(path)}")
    folder = whole_checkpoint(path)
    step = read_manifest(folder).step
    ema = ", moving average" if config.weights == "ema" else ""
    # The manifest contains the digests of all shards, so its digest identifies the checkpoint.
    return _Source(folder, False, f"step {step}{ema}, SHA-256 {_digest(folder / MANIFEST)}")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def check_initial_weights(config: RunConfig, later: str | None = None) -> None:
    """Check all sources of initial weights quickly, without reading a tensor.

    Args:
        config: The run.
        later: Prefix of paths that will exist later and are not checked.

    Raises:
        UserError: A path is missing or holds no weights, or both ``warm_start`` and ``modular``
            are set.
    """
    if later is None or not (config.warm_start.path or "").startswith(later):
        check_warm_start(config.warm_start)
    for frozen in config.objective.frozen_sources():
        if later is None or not frozen.path.startswith(later):
            check_source(frozen.path, frozen.option)
    if config.modular is None:
        return
    if config.warm_start.path is not None:
        raise UserError(
            f"warm_start.path must be none, as modular.kind={config.modular.kind()} says where the "
            f"weights come from, but is {config.warm_start.path}; remove it"
        )
    for option, path in config.modular.sources():
        if later is None or not path.startswith(later):
            check_source(path, option)


def fill_from_sources(config: RunConfig, objective: Objective, env: DistEnv) -> list[str]:
    """Load the config's sources of weights into an initialised objective; every rank calls it.

    Args:
        config: The run.
        objective: The whole objective, on any device.
        env: The ranks.

    Returns:
        Lines to print, the same on every rank.

    Raises:
        UserError: The weights cannot be read or do not fit; raised on every rank.
    """
    report = warm_start(config.warm_start, objective, env)
    told = [] if report is None else [f"warm start: {report}"]
    modular = config.modular
    if modular is not None:

        def fill() -> str:
            found = [read_source(path, option) for option, path in modular.sources()]
            return modular.fill(objective, config.objective, config.model, found)

        told.append(on_all(fill, env))
    for frozen in config.objective.frozen_sources():
        told.append(on_all(functools.partial(_fill_frozen, frozen, objective), env))
    return told


def _fill_frozen(frozen: FrozenSource, objective: Objective) -> str:
    """Load an encoder: of a run the teacher's, if it has one."""
    source = read_source(frozen.path, frozen.option)
    prefixes = [f"{name}." for name in ("teacher_encoder", "encoder")]
    names = [p for p in prefixes if any(name.startswith(p) for name in source.tensors)]
    tensors = source.tensors
    if names:
        tensors = {
            name.removeprefix(names[0]): tensor
            for name, tensor in source.tensors.items()
            if name.startswith(names[0])
        }
    try:
        report = load_tensors(
            objective.get_submodule(frozen.part), tensors, source.path, "auto", interpolate=True
        )
    except UserError as error:
        raise UserError(f"{frozen.option}: {error}") from error
    return f"{frozen.option}: {report}"
