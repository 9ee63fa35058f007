"""How the ranks write one checkpoint together.

Its collectives run on a gloo group of its own: they may run in a thread while training uses the
group of all. Every stage ends in one, in which each rank says what went wrong; no rank goes on
alone, and none stays away.

What a rank writes of a checkpoint, copied to host memory in the form of its files.

Every rank says which chunks of which tensors it holds; each chunk is given to one of the ranks
that hold it, so that all write about as much. A rank's chunks are laid out as safetensors files of
about `FILE_BYTES`; a buffer holds the data of one file, in the order of the file. Copying into it
is all that training waits for. The headers name each chunk's place in the whole tensor in the way
of torch.distributed.checkpoint, whose reader puts the tensors together on any layout.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

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

FILE_BYTES = 256 << 20
"""Size that a file is filled to. Several files are hashed at a time; a power of two is what
pinned memory is rounded to."""
PIECE_BYTES = 8 << 20
"""Bytes that are hashed and written at once."""
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the types in the safetensors format."""


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor."""

    name: str
    whole: tuple[int, ...]
    """Shape of the whole tensor."""
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


def inventory(state: Mapping[str, Any]) -> dict[Chunk, Tensor]:
    """Return the chunks that this rank holds, and their tensors; empty shards are left out.

    Args:
        state: Tensors by global name; DTensors stand for this rank's shard of them.

    Raises:
        TypeError: A value is no tensor, or of a type that safetensors does not know.
    """
    found: dict[Chunk, Tensor] = {}
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor) or value.dtype not in _TYPES:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} cannot be saved: it is {kind}")
        whole = tuple(value.shape)
        local, offset = value.detach(), (0,) * len(whole)
        if isinstance(value, DTensor):
            if value.device_mesh.get_coordinate() is None:
                continue
            (box,) = value.__create_chunk_list__()  # type: ignore[no-untyped-call]
            offset, local = tuple(box.offsets), value.to_local().detach()
        if local.numel() == 0:
            if math.prod(whole):
                continue
            offset, local = (0,) * len(whole), local.reshape(whole)
        found[Chunk(name, whole, offset, tuple(local.shape), value.dtype)] = local
    return found


def assign(inventories: Sequence[Sequence[Chunk]]) -> list[list[Chunk]]:
    """Give each chunk to one of the ranks that hold it, the largest first, to the least loaded.

    Args:
        inventories: The chunks that each rank holds.

    Returns:
        The chunks that each rank writes, in order of name.

    Raises:
        ValueError: A tensor's chunks do not make up the tensor.
    """
    holders: dict[Chunk, list[int]] = {}
    for rank, chunks in enumerate(inventories):
        for chunk in chunks:
            holders.setdefault(chunk, []).append(rank)
    held: dict[str, int] = {}
    for chunk in holders:
        held[chunk.name] = held.get(chunk.name, 0) + math.prod(chunk.shape)
    for chunk in holders:
        if held[chunk.name] != math.prod(chunk.whole):
            raise ValueError(
                f"{chunk.name} cannot be saved: its {math.prod(chunk.whole)} elements are held as "
                f"{held[chunk.name]}"
            )
    order = sorted(holders, key=lambda chunk: (-chunk.bytes, chunk.name, chunk.offset))
    loads = [0] * len(inventories)
    given: list[list[Chunk]] = [[] for _ in inventories]
    for chunk in order:
        rank = min(holders[chunk], key=lambda r: (loads[r], r))
        loads[rank] += chunk.bytes
        given[rank].append(chunk)
    return [sorted(chunks, key=lambda chunk: (chunk.name, chunk.offset)) for chunks in given]


@final
class StagedFile:
    """One safetensors file: its header, and the buffer of its data."""

    def __init__(self, name: str, chunks: Sequence[Chunk], pinned: bool) -> None:
        """Lay the chunks out and make the buffer.

        Raises:
            RuntimeError: There is no memory for the buffer.
        """
        self.name = name
        # Wide types first: then each tensor's data is aligned to its type.
        self._chunks = sorted(chunks, key=lambda chunk: -chunk.dtype.itemsize)
        size = sum(chunk.bytes for chunk in chunks)
        self.data = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.header = _header(self._chunks)

    def copy(self, tensors: Mapping[Chunk, Tensor]) -> None:
        """Copy the tensors' data into the buffer; copies from a GPU may be still under way."""
        place = 0
        for chunk in self._chunks:
            end = place + chunk.bytes
            if end > place:
                flat = tensors[chunk].contiguous().view(-1).view(torch.uint8)
                self.data[place:end].copy_(flat, non_blocking=True)
            place = end

    def write(self, folder: Path) -> dict[str, Any]:
        """Write and flush the file; return what the manifest says of it.

        The checksum is that of the buffer: what the disk makes of it shows when it is verified.

        Raises:
            OSError: It could not be written.
        """
        digest, size = hashlib.sha256(), 0
        with (folder / self.name).open("xb") as stream:
            for piece in self._pieces():
                stream.write(piece)
                digest.update(piece)
                size += len(piece)
            stream.flush()
            os.fsync(stream.fileno())
        return {"bytes": size, "sha256": digest.hexdigest()}

    def _pieces(self) -> Iterator[memoryview]:
        yield memoryview(self.header)
        data = self.data.numpy().data
        for place in range(0, len(data), PIECE_BYTES):
            yield data[place : place + PIECE_BYTES]


def _header(chunks: Sequence[Chunk]) -> bytes:
    """Return the head of a safetensors file: its length (8 bytes), then JSON."""
    places = {chunk.name: {"saved_offsets": list(chunk.offset)} for chunk in chunks}
    # DCP_SHARDING_INFO is where torch.distributed.checkpoint's reader looks.
    entries: dict[str, Any] = {
        "__metadata__": {"format": "pt", "DCP_SHARDING_INFO": json.dumps(places)}
    }
    place = 0
    for chunk in chunks:
        end = place + chunk.bytes
        entries[chunk.name] = {
            "dtype": _TYPES[chunk.dtype],
            "shape": list(chunk.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@final
class Staging:
    """All that a rank writes of each checkpoint, in buffers that are used again."""

    def __init__(self, rank: int, chunks: Sequence[Chunk], pinned: bool) -> None:
        """Make the buffers for `chunks`; pinned ones are fast to copy to from a GPU.

        Raises:
            RuntimeError: There is no memory for them.
        """
        groups: list[list[Chunk]] = []
        room = 0
        for chunk in chunks:
            if chunk.bytes > room or not groups:
                groups.append([])
                room = FILE_BYTES
            groups[-1].append(chunk)
            room -= chunk.bytes
        self.files = [
            StagedFile(f"shard_{rank:05d}_{part:03d}.safetensors", group, pinned)
            for part, group in enumerate(groups)
        ]

    def copy(self, tensors: Mapping[Chunk, Tensor]) -> None:
        """Copy the data of this rank's chunks, and return when it is all there."""
        for file in self.files:
            file.copy(tensors)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write the files; return their entries in the manifest.

        Raises:
            OSError: One could not be written.
        """
        return {file.name: file.write(folder) for file in self.files}


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
