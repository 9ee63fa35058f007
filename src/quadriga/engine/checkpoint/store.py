"""Checkpoints: complete or absent, verified when read; a run resumes from the newest valid one.

A checkpoint is a folder ``step_00001000`` with safetensors shards, each rank's part of the state,
and a ``manifest.json`` with the size and SHA-256 of each. It is written under a temporary name and
flushed to disk, the manifest last, and then renamed. Tensors have global names that do not depend
on the layout, so any number of ranks can read a checkpoint.

Training waits only for the copy to host memory. A thread does the rest; its collectives run on a
separate process group, so that they never interleave with those of training.
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
    clear_leftovers,
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
"""Called with each complete checkpoint on rank 0, in the thread that wrote it. An exception becomes
a warning."""
OnReported = Callable[[int, Mapping[str, float]], None]
"""Called with a step and the metrics of the state after it, on rank 0. An `OSError` becomes a
warning."""


@dataclass
class _Save:
    """A save in progress."""

    step: int
    problem: str | None = None
    """The error, if any; the same on every rank once the save has ended."""
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
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Store checkpoints in `folder`, which need not exist yet; every rank calls it.

        Args:
            folder: Where the checkpoints are.
            env: The ranks that share the state.
            config: When to write in the background, what to keep, what a failure means.
            config_hash: Identifies the run in the manifest.
            warn: Called on rank 0, in the training thread, with errors that do not stop the run.
            on_saved: Writes the sidecar files of a checkpoint.
            on_reported: Stores the metrics of a saved state.
            extra: Plain JSON for the manifest, the same on every rank.
        """
        self._folder, self._env, self._config = folder, env, config
        self._warn: Callable[[str], None] = warn if env.is_main else lambda text: None
        self._writer = CheckpointWriter(folder, env, config_hash)
        self._retention = Retention(folder, config, self._warn) if env.is_main else None
        self._on_saved = on_saved if env.is_main else None
        self._on_reported = on_reported if env.is_main else None
        self._extra = dict(extra or {})
        self._saving: _Save | None = None
        self._unsaved: UserError | None = None
        self._notes: list[str] = []  # warnings that the training thread prints
        self._began = time.monotonic()  # the last save, or the run
        self._stalled = 0.0

    def is_due(self) -> bool:
        """Return whether the last save is ``checkpoint.every_minutes`` ago, by rank 0's clock.

        False on the other ranks, and while that save is still being written.
        """
        seconds = self._config.seconds
        if seconds is None or not self._env.is_main:
            return False
        thread = None if self._saving is None else self._saving.thread
        is_writing = thread is not None and thread.is_alive()
        return not is_writing and time.monotonic() - self._began >= seconds

    def save(self, step: int, executor: Executor) -> Path:
        """Save the executor's state after `step` steps; every rank calls it.

        With ``checkpoint.asynchronous`` it returns when the state is copied; the checkpoint is
        complete once `wait` has returned.

        Args:
            step: Finished steps.
            executor: Its `state_dict` is name -> tensor; a DTensor holds this rank's shard.

        Returns:
            The checkpoint's path.

        Raises:
            UserError: This save, or the one before, could not be written; raised on every rank.
                Older checkpoints are unchanged.
        """
        began = time.perf_counter()
        self._began = time.monotonic()
        try:
            self._settle()
            save = _Save(step, self._writer.stage(executor.state_dict()))
            if self._config.asynchronous:
                # Not a daemon, so that the interpreter waits for it at exit.
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
        """Wait until the last save is on disk; every rank calls it.

        Args:
            final: Whether the run ends here. A failure to write its last checkpoint is then an
                error, whatever ``checkpoint.on_failure`` is.

        Raises:
            UserError: It could not be written; raised on every rank.
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
        """Return the seconds that training waited for checkpoints since the last call."""
        stalled, self._stalled = self._stalled, 0.0
        return stalled

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Store metrics of the state after `step`; ``checkpoint.keep_best`` may be among them.

        Args:
            step: Finished steps.
            metrics: Name -> value; only rank 0's are used.
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
            The number of finished steps.

        Raises:
            UserError: The tensors are not those of this run's model and optimizer.
        """
        self._settle()
        executor.match_state(read_names(path, self._env))
        state = executor.state_dict()
        step = read_manifest(path).step
        read_state(path, state, self._env, complete=True)  # no rank reads `path` from here on
        executor.load_state_dict(state)
        if self._retention is not None:
            self._retention.forget_after(step)
            try:  # a kill may have left what the last save was about to remove
                clear_leftovers(self._folder)
                self._retention.prune(step)
            except OSError as error:
                self._warn(f"old checkpoints were not removed: {error}")
        return step

    def load_objective(
        self, path: Path, objective: nn.Module, weights: Literal["raw", "ema"] = "raw"
    ) -> int:
        """Read the objective without the optimizer; see `read_objective`."""
        return read_objective(path, objective, self._env, weights)

    def close(self) -> None:
        """Finish the save in progress and destroy the process group; every rank calls it."""
        self._join()
        if self._saving is not None and self._saving.problem is not None:
            self._warn(str(self._unwritten(self._saving)))
        self._saving = None
        self._writer.close()

    def __enter__(self) -> Self:
        """Return itself; `__exit__` closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; raises if the last save failed, unless another error is being raised."""
        try:
            if error is None:
                self.wait(final=True)
        finally:
            self.close()

    def _settle(self, final: bool = False) -> None:
        """Wait for the save in progress, and warn or raise if it failed."""
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
        """Write the staged state, then the sidecar files, and prune old checkpoints."""
        save.problem = self._writer.write(save.step, self._extra, save.problem)
        if save.problem is None and self._on_saved is not None:
            folder = checkpoint_path(self._folder, save.step)
            try:
                self._on_saved(folder)
            except Exception as error:  # the checkpoint exists: they can be written from it later
                self._notes.append(f"the files beside {folder.name} were not written: {error}")
        if save.problem is None and self._retention is not None:
            try:
                self._retention.prune(save.step)
            except Exception as error:  # the checkpoint exists; the next save prunes again
                self._notes.append(f"old checkpoints were not removed: {error}")
