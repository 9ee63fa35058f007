"""The index of one `tar` shard: where each image is and what its label is.

It is kept in ``SHARD.tar.index.npz`` beside the shard: plain arrays, no pickle, written whole or
not at all, and made anew when the shard's size or time of change is another.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from quadriga.data.images.files import PackedNames, is_image
from quadriga.errors import UserError

_VERSION = 1
_BLOCK = 512


@dataclass(frozen=True)
class ShardIndex:
    """Where the images of one shard are."""

    path: Path
    keys: PackedNames
    """Name of each sample: the member's path up to the first dot of its last part."""
    labels: PackedNames
    """Text of each label, empty without one."""
    offsets: npt.NDArray[np.int64]
    """int64 (samples,): position of each image in the shard, in bytes."""
    sizes: npt.NDArray[np.int64]
    """int64 (samples,): length of each image in bytes."""


@dataclass
class _Sample:
    image: str = ""
    offset: int = 0
    size: int = 0
    label: str = ""


def load_or_build(path: Path) -> tuple[ShardIndex, str]:
    """Return the index of a shard, from its index file when that is up to date.

    Args:
        path: The shard.

    Returns:
        The index, and why it could not be kept, empty when it is.

    Raises:
        UserError: The shard is missing or damaged.
    """
    file = path.with_name(path.name + ".index.npz")
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read: {error.strerror or error}") from error
    stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns], np.int64)
    kept = _load(path, file, stamp)
    if kept is not None:
        return kept, ""
    index = build(path)
    try:
        _save(index, file, stamp)
    except OSError as error:
        return index, error.strerror or str(error)
    return index, ""


def build(path: Path) -> ShardIndex:
    """Read the headers of a shard, and the labels in it.

    Raises:
        UserError: It is no uncompressed tar file, is cut off, or names a member twice.
    """
    samples: dict[str, _Sample] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isfile():
                    _enter(samples, member, file, path)
            end = archive.offset
            file.seek(end)
            ended = file.read(_BLOCK) == bytes(_BLOCK)
    except (tarfile.TarError, OSError) as error:
        reason = "it is cut off" if "unexpected end" in str(error) else str(error)
        raise _damaged(path, reason) from error
    if not ended:
        raise _damaged(path, f"it is cut off or damaged at byte {end}")
    found = {key: sample for key, sample in samples.items() if sample.image}
    return ShardIndex(
        path,
        PackedNames(found),
        PackedNames(sample.label for sample in found.values()),
        np.array([sample.offset for sample in found.values()], np.int64),
        np.array([sample.size for sample in found.values()], np.int64),
    )


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"the shard {path} must be a whole, uncompressed tar file, but {reason}; "
        f"copy or make it again"
    )


def _enter(
    samples: dict[str, _Sample], member: tarfile.TarInfo, file: IO[bytes], path: Path
) -> None:
    """Add what one member says of its sample."""
    folder, _, base = member.name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem:
        return
    sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
    if suffix == "cls":
        sample.label = _text(member, file, path).strip()
    elif suffix == "json" and not sample.label:
        sample.label = _label_in_json(_text(member, file, path), member.name, path)
    elif is_image(base):
        if sample.image:
            raise UserError(
                f"the shard {path} must hold one image per sample, but has both {sample.image} "
                f"and {member.name}; make it again"
            )
        sample.image, sample.offset, sample.size = member.name, member.offset_data, member.size


def _text(member: tarfile.TarInfo, file: IO[bytes], path: Path) -> str:
    position = file.tell()
    file.seek(member.offset_data)
    data = file.read(member.size)
    file.seek(position)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, f"its member {member.name} is no UTF-8 text") from error


def _label_in_json(text: str, name: str, path: Path) -> str:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise _damaged(path, f"its member {name} is no JSON: {error}") from error
    label = values.get("label") if isinstance(values, dict) else None
    return "" if label is None else str(label)


def _load(path: Path, file: Path, stamp: npt.NDArray[np.int64]) -> ShardIndex | None:
    """Return the kept index, or None where there is none, or none that is up to date."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if not np.array_equal(arrays["stamp"], stamp):
                return None
            return ShardIndex(
                path,
                PackedNames.from_arrays(arrays["keys"], arrays["key_ends"]),
                PackedNames.from_arrays(arrays["labels"], arrays["label_ends"]),
                arrays["offsets"],
                arrays["sizes"],
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # Missing, from another program, or damaged: the shard itself has it all.
        return None


def _save(index: ShardIndex, file: Path, stamp: npt.NDArray[np.int64]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            np.savez(
                out,
                stamp=stamp,
                keys=index.keys.text,
                key_ends=index.keys.ends,
                labels=index.labels.text,
                label_ends=index.labels.ends,
                offsets=index.offsets,
                sizes=index.sizes,
            )
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
