"""Collective writing of one checkpoint by all ranks.

The collectives run on a separate gloo group, because they may run in a thread while training uses
the default group. Every phase ends with a gather of the ranks' errors, so that all ranks continue
or stop together.

The ranks gather which chunks of which tensors each holds. Each chunk is assigned to one of its
holders so that all ranks write about equally much. A rank's chunks form safetensors files of about
`FILE_BYTES`, and a host buffer holds the data of each file in the file's order. Training waits only
for the copy into the buffers. The headers give each chunk's offset in the full tensor in the format
of torch.distributed.checkpoint, whose reader assembles the tensors on any layout.
"""

from __future__ import annotations

import contextlib
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

from quadriga.distributed.collectives import is_dtensor
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
"""Target size of a file. Several files are hashed at a time; a power of two, because torch rounds
pinned allocations up to one."""
PIECE_BYTES = 8 << 20
"""Bytes per hash update and write."""
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
"""dtype -> its name in the safetensors format."""


@dataclass(frozen=True)
class Chunk:
    """A rectangular block of a tensor."""

    name: str
    whole: tuple[int, ...]
    """Shape of the full tensor."""
    offset: tuple[int, ...]
    """Index of the first element in the full tensor."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


def inventory(state: Mapping[str, Any]) -> dict[Chunk, Tensor]:
    """Return the chunks that this rank holds with their tensors, without empty shards.

    Args:
        state: Global name -> tensor; a DTensor holds this rank's shard.

    Raises:
        TypeError: A value is not a tensor, or has a dtype that safetensors does not support.
    """
    found: dict[Chunk, Tensor] = {}
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor) or value.dtype not in _TYPES:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} cannot be saved: it is {kind}")
        whole = tuple(value.shape)
        local, offset = value.detach(), (0,) * len(whole)
        if is_dtensor(value):
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
    """Assign each chunk to the least loaded of the ranks that hold it, the largest chunk first.

    Args:
        inventories: The chunks that each rank holds.

    Returns:
        The chunks that each rank writes, sorted by name.

    Raises:
        ValueError: A tensor's chunks do not cover the tensor exactly once.
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
    """One safetensors file: its header, and a uint8 buffer of its data."""

    def __init__(self, name: str, chunks: Sequence[Chunk], pinned: bool) -> None:
        """Lay out the chunks and allocate the buffer.

        Raises:
            RuntimeError: There is no memory for the buffer.
        """
        self.name = name
        # Wide dtypes first, so that each tensor's data is aligned to its dtype.
        self._chunks = sorted(chunks, key=lambda chunk: -chunk.dtype.itemsize)
        size = sum(chunk.bytes for chunk in chunks)
        self.data = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.header = _header(self._chunks)

    def copy(self, tensors: Mapping[Chunk, Tensor]) -> None:
        """Copy the tensors' data into the buffer; copies from a GPU are asynchronous."""
        place = 0
        for chunk in self._chunks:
            end = place + chunk.bytes
            if end > place:
                flat = tensors[chunk].contiguous().view(-1).view(torch.uint8)
                self.data[place:end].copy_(flat, non_blocking=True)
            place = end

    def write(self, folder: Path) -> dict[str, Any]:
        """Write and flush the file; return its entry in the manifest.

        The checksum is that of the buffer; verification detects what the disk changed.

        Raises:
            OSError: It cannot be written.
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
    """Return the header of a safetensors file: its length (8 bytes), then JSON."""
    places = {chunk.name: {"saved_offsets": list(chunk.offset)} for chunk in chunks}
    # torch.distributed.checkpoint's reader looks for offsets in DCP_SHARDING_INFO.
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
    """The files that a rank writes for each checkpoint, in buffers that are reused."""

    def __init__(self, rank: int, chunks: Sequence[Chunk], pinned: bool) -> None:
        """Allocate the buffers for `chunks`; copies from a GPU to pinned ones are fast.

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
        """Copy the data of this rank's chunks, and wait for the copies."""
        for file in self.files:
            file.copy(tensors)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write the files; return their entries in the manifest.

        Raises:
            OSError: A file cannot be written.
        """
        return {file.name: file.write(folder) for file in self.files}


Value = TypeVar("Value")


class _RankLost(Exception):
    """A collective has failed."""


@final
class CheckpointWriter:
    """Copies and writes this rank's part of the checkpoints; rank 0 adds the manifest and renames.

    Every rank calls every public method.
    """

    def __init__(self, folder: Path, env: DistEnv, config_hash: str) -> None:
        """Create the process group for checkpoints in `folder`, and the folder's parents."""
        self._folder, self._env, self._hash = folder, env, config_hash
        if env.is_main:
            with contextlib.suppress(OSError):  # then the first save says so
                folder.parent.mkdir(parents=True, exist_ok=True)
        self._group = dist.new_group(backend="gloo") if env.world_size > 1 else None
        self._chunks: list[Chunk] | None = None  # the chunks that the assignment is for
        self._mine: list[Chunk] = []
        self._staging: Staging | None = None
        self.rank_lost = False
        """Whether a collective of a save failed; the ranks may then report different errors."""

    def stage(self, state: Mapping[str, Any]) -> str | None:
        """Copy this rank's part of the state to host memory; every rank calls it.

        The ranks assign chunks anew only when the names or shapes of the state have changed.

        Returns:
            This rank's error, if any; `write` shares it with the other ranks.
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
        """Write and flush the staged files, add the manifest and rename; every rank calls it.

        Args:
            step: Finished steps.
            extra: Plain JSON for the manifest.
            problem: The value that `stage` returned.

        Returns:
            The error, if any, the same on every rank; the partial checkpoint is then removed.
        """
        partial = partial_path(self._folder, step)
        try:
            problem = self._write(step, extra, problem, partial)
            if problem is not None and self._env.is_main:
                shutil.rmtree(partial, ignore_errors=True)
        except _RankLost:
            self.rank_lost = True
            problem = "another rank is lost"
        except Exception as error:  # a bug: reported in the training thread
            problem = f"{type(error).__name__}: {error}"
        if self.rank_lost:
            # Only ranks connected to the lost one notice the loss. Destroying the group makes the
            # ranks that wait for this one fail too; otherwise this one might wait for them in
            # training.
            self._let_group_go()
        return problem

    def close(self) -> None:
        """Free the buffers and destroy the group; no save may be in progress."""
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
        # Without its parents: a work directory that was deleted meanwhile is not made anew.
        self._folder.mkdir(exist_ok=True)
        partial.mkdir()

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
    """Return (value, None) or (None, error), because every rank must reach the next collective."""
    try:
        return function(), None
    except OSError as error:
        return None, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _first(problems: list[str | None]) -> str | None:
    return next((problem for problem in problems if problem is not None), None)
