"""Checkpoints: complete or absent, verified when read, the newest valid one wins.

A checkpoint is a folder ``step_00001000`` of safetensors shards, each rank's part of the state,
and a ``manifest.json`` with the size and SHA-256 of each. It is written under another name,
flushed to disk, its manifest last, and then renamed. Tensors have global names and no layout, so
any number of ranks reads what any other number wrote.

Training waits for a copy to host memory. The rest is done by a thread, whose collectives run on a
group of their own, so that they never mix with those of training.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, final

from torch import nn

from quadriga.contracts import Executor
from quadriga.distributed.environment import DistEnv
from quadriga.engine.checkpoint.folder import (
    MANIFEST,
    InvalidCheckpoint,
    Manifest,
    checkpoint_path,
    list_checkpoints,
    newest_valid,
    read_manifest,
    set_aside_after,
    step_of,
    verify,
)
from quadriga.engine.checkpoint.read import read_names, read_objective, read_state
from quadriga.engine.checkpoint.retention import Retention
from quadriga.engine.checkpoint.write import CheckpointWriter
from quadriga.engine.run_config import CheckpointConfig
from quadriga.errors import UserError

__all__ = [
    "MANIFEST",
    "CheckpointStore",
    "InvalidCheckpoint",
    "Manifest",
    "list_checkpoints",
    "newest_valid",
    "read_manifest",
    "read_objective",
    "set_aside_after",
    "step_of",
    "verify",
]


OnSaved = Callable[[Path], None]
"""Told of a whole checkpoint, on rank 0 and in the thread that wrote it; an error is a warning."""
OnReported = Callable[[int, Mapping[str, float]], None]
"""Told the step and what was found of the state after it, on rank 0; an error is a warning."""


@dataclass
class _Save:
    """One save on its way to the disk."""

    step: int
    extra: dict[str, Any]
    problem: str | None = None
    """What went wrong, if anything; the same on every rank in the end."""
    thread: threading.Thread | None = None


@final
class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(
        self,
        folder: Path,
        env: DistEnv,
        config: CheckpointConfig,
        config_hash: str,
        warn: Callable[[str], None] = lambda text: None,
        *,
        on_saved: OnSaved | None = None,
        on_reported: OnReported | None = None,
    ) -> None:
        """Keep checkpoints in `folder`, which need not exist yet; every rank calls it.

        Args:
            folder: Where the checkpoints are.
            env: The ranks that share the state.
            config: When to write in the background, what to keep, what a failure means.
            config_hash: Says in the manifest which run this is.
            warn: Told, on rank 0 and in the thread that trains, what went wrong without
                stopping the run.
            on_saved: Writes what lies beside a checkpoint for others.
            on_reported: Writes down what is known of a saved state.
        """
        self._folder, self._env, self._config = folder, env, config
        self._warn: Callable[[str], None] = warn if env.is_main else lambda text: None
        self._writer = CheckpointWriter(folder, env, config_hash)
        self._retention = Retention(folder, config, self._warn) if env.is_main else None
        self._on_saved = on_saved if env.is_main else None
        self._on_reported = on_reported if env.is_main else None
        self._saving: _Save | None = None
        self._unsaved: UserError | None = None
        self._notes: list[str] = []  # said by the thread that trains
        self._stalled = 0.0

    def save(self, step: int, executor: Executor, extra: dict[str, Any] | None = None) -> Path:
        """Save the executor's state after `step` steps; every rank calls it.

        With ``checkpoint.asynchronous`` it returns when the state is copied; the checkpoint is
        there once `wait` has returned.

        Args:
            step: Finished steps.
            executor: Its `state_dict` holds tensors by global name; DTensors stand for a shard.
            extra: Plain JSON for the manifest, the same on every rank.

        Returns:
            Where the checkpoint is or will be.

        Raises:
            UserError: This save, or the one before, could not be written (the same on every
                rank); the checkpoints that were there still are.
        """
        began = time.perf_counter()
        try:
            self._settle()
            save = _Save(step, extra or {}, self._writer.stage(executor.state_dict()))
            if self._config.asynchronous:
                # No daemon: the end of the interpreter waits for it.
                save.thread = threading.Thread(
                    target=self._write, args=(save,), name="checkpoint", daemon=False
                )
                save.thread.start()
                self._saving = save
            else:
                self._saving = save
                self._write(save)
                self._settle()
        finally:
            self._stalled += time.perf_counter() - began
        return checkpoint_path(self._folder, step)

    def wait(self, final: bool = False) -> None:
        """Wait until what was saved last is on the disk; every rank calls it.

        Args:
            final: Whether the run ends here: that its last checkpoint could not be written is
                then an error, whatever ``checkpoint.on_failure`` says.

        Raises:
            UserError: It could not be written; the same on every rank.
        """
        began = time.perf_counter()
        try:
            self._settle(final)
        finally:
            self._stalled += time.perf_counter() - began
        kept = self._retention
        if final and kept is not None and not kept.reported and not kept.explained:
            if self._config.keep_best is not None:
                self._warn(
                    f"checkpoint.keep_best is {self._config.keep_best}, but nothing of that name "
                    "was measured where a checkpoint was saved: no best one was kept"
                )
        if final and self._unsaved is not None:
            unsaved, self._unsaved = self._unsaved, None
            raise unsaved

    def take_stall(self) -> float:
        """Return the seconds that training waited for checkpoints since this was last asked."""
        stalled, self._stalled = self._stalled, 0.0
        return stalled

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell what is known of the state after `step`: ``checkpoint.keep_best`` may be in it.

        Args:
            step: Finished steps.
            metrics: Values by name; rank 0's count.
        """
        if self._retention is not None and self._config.keep_best is not None:
            saving = self._saving.step if self._saving is not None else None
            self._retention.report(step, metrics, saving)
        if self._on_reported is not None:
            try:
                self._on_reported(step, metrics)
            except OSError as error:
                self._warn(f"what was found after step {step} was not written: {error}")

    def load(self, path: Path, executor: Executor) -> int:
        """Read a verified checkpoint into the executor; every rank calls it.

        Returns:
            The number of steps that were made.

        Raises:
            UserError: The tensors are not those of this run's model and optimizer.
        """
        self._settle()
        executor.match_state(read_names(path, self._env))
        state = executor.state_dict()
        read_state(path, state, self._env, complete=True)
        executor.load_state_dict(state)
        step = read_manifest(path).step
        if self._retention is not None:
            self._retention.forget_after(step)
        return step

    def load_objective(
        self, path: Path, objective: nn.Module, weights: Literal["raw", "ema"] = "raw"
    ) -> int:
        """Read the objective alone, without the optimizer; see `read_objective`."""
        return read_objective(path, objective, self._env, weights)

    def close(self) -> None:
        """Finish the save under way and let the group go; every rank calls it."""
        self._join()
        if self._saving is not None and self._saving.problem is not None:
            self._warn(str(self._unwritten(self._saving)))
        self._saving = None
        self._writer.close()

    def __enter__(self) -> Self:
        """Use as a context manager: it is closed at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; what could not be written is an error unless there is one already."""
        try:
            if error is None:
                self.wait(final=True)
        finally:
            self.close()

    def _settle(self, final: bool = False) -> None:
        """Wait for the save under way, and say or raise what became of it."""
        self._join()
        save, self._saving = self._saving, None
        notes, self._notes = self._notes, []
        for note in notes:
            self._warn(note)
        if save is None:
            return
        self._unsaved = self._unwritten(save) if save.problem is not None else None
        if self._unsaved is not None:
            if final or self._config.on_failure == "stop":
                unsaved, self._unsaved = self._unsaved, None
                raise unsaved
            self._warn(
                f"checkpoint {checkpoint_path(self._folder, save.step)} could not be written: "
                f"{save.problem}; the checkpoints before it are untouched, and training goes on "
                "(checkpoint.on_failure is continue)"
            )

    def _join(self) -> None:
        if self._saving is not None and self._saving.thread is not None:
            self._saving.thread.join()

    def _unwritten(self, save: _Save) -> UserError:
        error = UserError(
            f"checkpoint {checkpoint_path(self._folder, save.step)} could not be written: "
            f"{save.problem}; the checkpoints before it are untouched: make room or choose "
            "another --work-dir, then --resume"
        )
        error.on_every_rank = not self._writer.rank_lost
        return error

    def _write(self, save: _Save) -> None:
        """Do what training need not wait for."""
        save.problem = self._writer.write(save.step, save.extra, save.problem)
        if save.problem is None and self._on_saved is not None:
            folder = checkpoint_path(self._folder, save.step)
            try:
                self._on_saved(folder)
            except Exception as error:  # the checkpoint is there: it can be written from it later
                self._notes.append(f"the files beside {folder.name} were not written: {error}")
        if save.problem is None and self._retention is not None:
            try:
                self._retention.prune(save.step)
            except Exception as error:  # the checkpoint is there; the others stay a little longer
                self._notes.append(f"old checkpoints were not removed: {error}")
