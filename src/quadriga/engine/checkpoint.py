"""Checkpoints: complete or absent, verified when read, the newest valid one wins.

A checkpoint is a folder ``step_00001000`` of safetensors shards, written and read by
torch.distributed.checkpoint (each rank its part; no pickle anywhere), and a ``manifest.json``
with the size and SHA-256 of each shard. It is written under another name, flushed to disk, its
manifest last, and then renamed. Tensors have global names and no layout, so any number of ranks
reads what any other number wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from quadriga.contracts import Executor
from quadriga.distributed.collectives import barrier, broadcast_value
from quadriga.distributed.environment import DistEnv
from quadriga.engine.files import fsync_file, fsync_folder, write_text
from quadriga.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the layout; a manifest of another is not read."""
_NAME = re.compile(r"step_(\d{8,})")
_PARTIAL = ".partial"


class InvalidCheckpoint(Exception):
    """A checkpoint that must not be loaded; the message says why."""


@dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint says of itself."""

    format: int
    step: int
    config_hash: str
    world_size: int
    files: dict[str, dict[str, Any]]
    """File name -> {"bytes": int, "sha256": hexadecimal digest}."""


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        InvalidCheckpoint: There is none, or it is damaged.
    """
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InvalidCheckpoint("it has no manifest.json") from error
    except (OSError, ValueError, TypeError) as error:
        raise InvalidCheckpoint(f"its manifest.json is damaged ({error})") from error


def verify(folder: Path) -> Manifest:
    """Check every file of a checkpoint against its manifest.

    Raises:
        InvalidCheckpoint: A file is missing, cut short or changed.
    """
    manifest = read_manifest(folder)
    try:
        _verify_files(folder, manifest)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise InvalidCheckpoint(f"it cannot be checked ({error!r})") from error
    return manifest


def _verify_files(folder: Path, manifest: Manifest) -> None:
    if manifest.format != FORMAT:
        raise InvalidCheckpoint(f"its format is {manifest.format}, this version reads {FORMAT}")
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise InvalidCheckpoint(f"{name} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise InvalidCheckpoint(f"{name} has {size} bytes instead of {expected['bytes']}")
        if _sha256(path) != expected["sha256"]:
            raise InvalidCheckpoint(f"{name} does not match its checksum")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders below `folder`, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def newest_valid(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that verifies, and say which ones were passed over and why."""
    for path in list_checkpoints(folder):
        try:
            verify(path)
        except InvalidCheckpoint as error:
            say(f"checkpoint {path} is passed over: {error}")
        else:
            return path
    return None


def set_aside_after(folder: Path, step: int) -> None:
    """Move the checkpoints after `step` into ``superseded``: the run goes on from before them.

    Left in place they would be the newest at the next resumption, with a gap in the metrics.
    """
    for path in list_checkpoints(folder):
        if int(path.name.removeprefix("step_")) > step:
            aside = folder / "superseded"
            aside.mkdir(exist_ok=True)
            target = aside / path.name
            if target.exists():
                shutil.rmtree(target)
            os.rename(path, target)


@final
class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, env: DistEnv, keep: int, config_hash: str) -> None:
        """Keep the newest `keep` checkpoints in `folder`, which need not exist yet."""
        self._folder, self._env, self._keep, self._hash = folder, env, keep, config_hash

    def save(self, step: int, executor: Executor) -> Path:
        """Write the executor's state after `step` steps; every rank calls it.

        Raises:
            UserError: It could not be written; the checkpoints that were there still are.
        """
        final_path = self._folder / f"step_{step:08d}"
        partial = self._folder / f".step_{step:08d}{_PARTIAL}"
        problem = None
        try:
            if self._env.is_main:
                self._clear_partials()
                partial.mkdir(parents=True)
        except OSError as error:
            problem = f"{error}"
        problem = broadcast_value(problem, self._env)
        if problem is None:
            problem = self._write(partial, final_path, step, executor)
        if problem is not None:
            if self._env.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            unwritten = UserError(
                f"checkpoint {final_path} could not be written: {problem}; the checkpoints before "
                "it are untouched: make room or choose another --work-dir, then --resume"
            )
            unwritten.on_every_rank = True
            raise unwritten
        return final_path

    def _write(self, partial: Path, final_path: Path, step: int, executor: Executor) -> str | None:
        """Write, seal and rename; return what went wrong, the same on every rank."""
        problem = None
        try:
            writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
            with _quiet():
                save(
                    executor.state_dict(),
                    storage_writer=writer,
                    no_dist=self._env.world_size == 1,
                )
        except (Exception, CheckpointException) as error:
            # torch wraps what the ranks raised in an exception that is not an Exception.
            problem = _root_cause(error)
        barrier(self._env)
        if self._env.is_main and problem is None:
            try:
                self._seal(partial, final_path, step)
            except OSError as error:
                problem = f"{error}"
        return broadcast_value(problem, self._env)

    def _seal(self, partial: Path, final_path: Path, step: int) -> None:
        files = {}
        for path in sorted(partial.iterdir()):
            fsync_file(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        manifest = Manifest(FORMAT, step, self._hash, self._env.world_size, files)
        write_text(partial / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
        fsync_folder(partial)
        if final_path.exists():
            shutil.rmtree(final_path)
        os.rename(partial, final_path)
        fsync_folder(self._folder)
        for old in list_checkpoints(self._folder)[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)  # tried again at the next save

    def _clear_partials(self) -> None:
        if self._folder.is_dir():
            for path in self._folder.glob(f".step_*{_PARTIAL}"):
                shutil.rmtree(path)

    def load(self, path: Path, executor: Executor) -> int:
        """Read a verified checkpoint into the executor; every rank calls it.

        Returns:
            The number of steps that were made.

        Raises:
            UserError: The tensors are not those of this run's model and optimizer.
        """
        state = executor.state_dict()
        self._read(path, state, complete=True)
        executor.load_state_dict(state)
        return read_manifest(path).step

    def load_objective(self, path: Path, objective: nn.Module, weights: str = "raw") -> int:
        """Read the objective alone, without the optimizer; returns the number of steps.

        Args:
            path: A verified checkpoint.
            objective: Whole, filled in place.
            weights: "raw", or "ema" for the moving average of the trainable ones.

        Raises:
            UserError: The tensors are not those of this model.
        """
        trained = {name for name, p in objective.named_parameters() if p.requires_grad}
        parts = {
            name: "ema" if weights == "ema" and name in trained else "objective"
            for name in objective.state_dict()
        }
        state = {f"{parts[name]}.{name}": t for name, t in objective.state_dict().items()}
        self._read(path, state, complete=False)
        return read_manifest(path).step

    def _read(self, path: Path, state: dict[str, Any], complete: bool) -> None:
        """Read tensors in place; `complete`: the checkpoint may hold nothing else."""
        reader = HuggingFaceStorageReader(str(path))
        stored = reader.read_metadata().state_dict_metadata
        for name in sorted(stored.keys() ^ state.keys() if complete else state.keys() - stored):
            where = "the run does not have it" if name in stored else "the checkpoint lacks it"
            raise UserError(f"checkpoint {path} is of another model: tensor {name}: {where}")
        for name, tensor in state.items():
            size = getattr(stored[name], "size", None)
            if size is not None and tuple(size) != tuple(tensor.shape):
                raise UserError(
                    f"checkpoint {path} is of another model: tensor {name} has shape "
                    f"{list(size)} instead of {list(tensor.shape)}"
                )
        with _quiet():
            load(state, storage_reader=reader, no_dist=self._env.world_size == 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out torch's warning that a world of one saves alone, which is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _root_cause(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    if failures:
        inner = next(iter(failures.values()))
        return str(inner[0] if isinstance(inner, tuple) else inner)
    return str(error)
