"""How the ranks write one checkpoint together.

Its collectives run on a gloo group of its own: they may run in a thread while training uses the
group of all. Every stage ends in one, in which each rank says what went wrong; no rank goes on
alone, and none stays away.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, final

import torch.distributed as dist

from quadriga.distributed.environment import DistEnv
from quadriga.engine.checkpoint.folder import (
    FORMAT,
    Manifest,
    checkpoint_path,
    clear_leftovers,
    partial_path,
    publish,
    write_manifest,
)
from quadriga.engine.checkpoint_staging import Chunk, Staging, assign, inventory

Value = TypeVar("Value")


class _RankLost(Exception):
    """A collective has failed."""


@final
class CheckpointWriter:
    """Copies and writes this rank's part of the checkpoints; rank 0 seals and names them."""

    def __init__(self, folder: Path, env: DistEnv, config_hash: str) -> None:
        """Write to `folder`; every rank calls it."""
        self._folder, self._env, self._hash = folder, env, config_hash
        self._group = dist.new_group(backend="gloo") if env.world_size > 1 else None
        self._chunks: list[Chunk] | None = None  # what the assignment was made for
        self._mine: list[Chunk] = []
        self._staging: Staging | None = None
        self.rank_lost = False
        """Whether a rank went away during a save: the others need not know of the same problem."""

    def stage(self, state: Mapping[str, Any]) -> str | None:
        """Copy this rank's part of the state; every rank calls it.

        Who writes what is agreed on when the state has changed its form, so once in a run.

        Returns:
            What went wrong on this rank, if anything; `write` tells the others.
        """
        held = inventory(state)
        chunks = list(held)
        try:
            if any(self._gather(chunks != self._chunks)):
                self._staging, self._chunks = None, chunks
                self._mine = assign(self._gather(chunks))[self._env.rank]
        except _RankLost:
            self.rank_lost = True
        if self.rank_lost:
            self._let_group_go()
            return "another rank is lost"
        try:
            if self._staging is None:
                pinned = any(held[chunk].is_cuda for chunk in self._mine)
                self._staging = Staging(self._env.rank, self._mine, pinned)
            self._staging.copy({chunk: held[chunk] for chunk in self._mine})
        except (MemoryError, RuntimeError) as error:
            return f"the state cannot be copied to host memory: {error}"
        return None

    def write(self, step: int, extra: dict[str, Any], problem: str | None) -> str | None:
        """Write what is staged, flush, seal and rename; every rank calls it.

        Args:
            step: Finished steps.
            extra: Plain JSON for the manifest.
            problem: What `stage` returned.

        Returns:
            What went wrong, the same on every rank; then nothing is left of this checkpoint.
        """
        partial = partial_path(self._folder, step)
        try:
            problem = self._write(step, extra, problem, partial)
            if problem is not None and self._env.is_main:
                shutil.rmtree(partial, ignore_errors=True)
        except _RankLost:
            self.rank_lost = True
            problem = "another rank is lost"
        except Exception as error:  # a bug: told where training is
            problem = f"{type(error).__name__}: {error}"
        if self.rank_lost:
            # Not every rank is a neighbour of the lost one. Who waits for this rank is to notice
            # as well: it may be what this rank waits for in its training.
            self._let_group_go()
        return problem

    def close(self) -> None:
        """Let the buffers and the group go; nothing may be under way."""
        self._staging, self._chunks = None, None
        self._let_group_go()

    def _let_group_go(self) -> None:
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def _write(
        self, step: int, extra: dict[str, Any], problem: str | None, partial: Path
    ) -> str | None:
        is_main, staging = self._env.is_main, self._staging
        if is_main and problem is None:
            _, problem = _attempt(lambda: self._begin(partial))
        problem = _first(self._gather(problem))
        if problem is not None or staging is None:
            return problem
        parts = self._gather(_attempt(lambda: staging.write(partial)))
        problem = _first([problem for _, problem in parts])
        if problem is not None:
            return problem
        if is_main:
            files = {name: entry for part, _ in parts for name, entry in (part or {}).items()}
            _, problem = _attempt(lambda: self._seal(partial, step, extra, files))
        return _first(self._gather(problem))

    def _begin(self, partial: Path) -> None:
        clear_leftovers(self._folder)
        partial.mkdir(parents=True)

    def _seal(
        self, partial: Path, step: int, extra: dict[str, Any], files: dict[str, dict[str, Any]]
    ) -> None:
        entries = dict(sorted(files.items()))
        for name, entry in entries.items():
            if (partial / name).stat().st_size != entry["bytes"]:
                raise OSError(f"{partial / name} is not what another rank has written there")
        manifest = Manifest(FORMAT, step, self._hash, self._env.world_size, entries, extra)
        write_manifest(partial, manifest)
        publish(partial, checkpoint_path(self._folder, step))

    def _gather(self, value: Value) -> list[Value]:
        """Return every rank's value, in rank order."""
        if self._env.world_size == 1:
            return [value]
        if self.rank_lost:
            raise _RankLost
        values = [value] * self._env.world_size
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            raise _RankLost from error
        return values


def _attempt(function: Callable[[], Value]) -> tuple[Value | None, str | None]:
    """Return the function's value, or what went wrong: no rank may stay away from a collective."""
    try:
        return function(), None
    except OSError as error:
        return None, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _first(problems: list[str | None]) -> str | None:
    return next((problem for problem in problems if problem is not None), None)
