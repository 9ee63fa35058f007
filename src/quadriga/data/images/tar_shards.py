"""Images in `tar` shards named as WebDataset does, read at random without unpacking.

The index of one `tar` shard: where each image is and what its label is.

It is kept in ``SHARD.tar.index.npz`` beside the shard: plain arrays, no pickle, written whole or
not at all, and made anew when the shard's size or time of change is another.
"""

from __future__ import annotations

import logging
import os
import tarfile
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from quadriga.config.base import Location
from quadriga.contracts import Split, UnreadableSample
from quadriga.data.images.encoded import EncodedImages, EncodedImagesConfig
from quadriga.data.images.files import (
    HELD_OUT_BY_CLASS,
    PackedNames,
    check_folder,
    in_split,
    number_classes,
)
from quadriga.data.images.record import PLAIN, Decoding, ImageRecord
from quadriga.data.images.scan import Skipped, advised, found_and_skipped, is_image
from quadriga.data.images.shard_names import find_shards, shards_by_name
from quadriga.errors import UserError
from quadriga.files import parse_json

_VERSION = 2
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
    skipped: PackedNames
    """Last member of each sample without an image that can be read."""


@dataclass
class _Sample:
    image: str = ""
    offset: int = 0
    size: int = 0
    label: str = ""
    last: str = ""


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
        PackedNames(sample.last for sample in samples.values() if not sample.image),
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
    sample.last = member.name
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
        values = parse_json(text)
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
                PackedNames.from_arrays(arrays["skipped"], arrays["skipped_ends"]),
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
                skipped=index.skipped.text,
                skipped_ends=index.skipped.ends,
            )
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


_OPEN_FILES = 64


@final
class TarShardsConfig(EncodedImagesConfig):
    """Images in ``tar`` files: the members ``NAME.jpg`` and ``NAME.cls`` are one sample.

    The label is the text of ``.cls``, or ``label`` in ``.json``: a number from 0, or a class
    name. Shards are not unpacked; an index is kept beside each.
    """

    root: Location[Path]
    """The folder that holds the shards."""
    shards: str | None = None
    """Training shards below `root`: a pattern with ``*``, or ``train-{000..146}.tar``; none: every
    ``*.tar`` whose name does not hold val, valid, validation, test, eval or dev as a word."""
    test_shards: str | None = None
    """Test shards below `root`; none: without `shards` those with the first of these words that
    any has, else a fixed hold-out of the samples."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """Share of the samples held out for testing when there are no test shards."""

    def build(self, split: Split) -> TarShards:
        """Open the shards of one split, and index those that are not indexed yet.

        Raises:
            UserError: A shard is missing or damaged, or there are none.
        """
        check_folder(self.root, "data.root")
        skipped = Skipped()
        named = None
        if self.test_shards is not None:
            named = find_shards(self.root, self.test_shards, "data.test_shards")
        if self.shards is not None:
            paths, test_paths = find_shards(self.root, self.shards, "data.shards"), named
        else:
            paths, test_paths = shards_by_name(self.root, named, skipped)
        train = self._open("data.shards", paths, skipped)
        if not test_paths:
            chosen = in_split(train.keys(), split, self.holdout, train.labels())
            part = TarShards(train.shards, train.classes, chosen, self.decoding())
            whose = "to train on" if split == "train" else "held out for testing"
            part.description = f"{len(chosen)} {whose} of {train.description}"
            part.identity = HELD_OUT_BY_CLASS
            return part
        if split == "train":
            return train
        return self._open("data.test_shards", test_paths, Skipped(), train.classes)

    def _open(
        self,
        key: str,
        paths: list[Path],
        skipped: Skipped,
        classes: tuple[str, ...] | None = None,
    ) -> TarShards:
        shards = list(index_shards(paths, logging.getLogger("quadriga").warning))
        images = sum(len(shard.keys) for shard in shards)
        if not images:
            raise UserError(f"{key} must hold images, but there are none in {paths[0]} and so on")
        for shard in shards:
            if len(shard.skipped):
                name = shard.skipped[0]
                skipped.add(advised("samples without an image", name), name, len(shard.skipped))
        opened = TarShards(
            shards, _classes(shards) if classes is None else classes, None, self.decoding()
        )
        names = paths[0].name if len(paths) == 1 else f"{paths[0].name} to {paths[-1].name}"
        found = f"{images} images in {len(paths)} shards of {self.root} ({names})"
        opened.description = found_and_skipped(found, skipped)
        return opened


@final
class TarShards(EncodedImages):
    """The images of some shards, by index."""

    def __init__(
        self,
        shards: Sequence[ShardIndex],
        classes: tuple[str, ...],
        chosen: npt.NDArray[np.int64] | None = None,
        decoding: Decoding = PLAIN,
    ) -> None:
        """Take the samples of `shards`, one shard after the other.

        Args:
            shards: The indices of the shards.
            classes: Class names in the order of the labels.
            chosen: Positions among all samples; None takes all.
            decoding: How the images are decoded.

        Raises:
            UserError: A label is not one of the classes.
        """
        self.shards = list(shards)
        self.classes = classes
        self.decoding = decoding
        self._starts = np.cumsum([0, *(len(shard.keys) for shard in shards)])
        self._chosen = np.arange(self._starts[-1]) if chosen is None else chosen
        self._labels = np.concatenate([_positions(shard, classes) for shard in shards])
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._chosen)

    def read(self, index: int) -> ImageRecord:
        """Return image `index` as its encoded bytes.

        Raises:
            UnreadableSample: The shard cannot be read there.
        """
        number, member = self._place(index)
        shard = self.shards[number]
        offset, size = int(shard.offsets[member]), int(shard.sizes[member])
        try:
            # pread leaves the file's position alone, which forked workers share.
            data = os.pread(self._descriptor(number), size, offset)
        except OSError as error:
            raise UnreadableSample(f"{self.name(index)}: {error.strerror or error}") from error
        if len(data) < size:
            raise UnreadableSample(f"{self.name(index)}: the shard ends after {len(data)} bytes")
        label = int(self._labels[self._chosen[index]])
        return ImageRecord(data, label if label >= 0 else None, self.name(index), self.decoding)

    def name(self, index: int) -> str:
        """Return shard and member of image `index`."""
        number, member = self._place(index)
        return f"{self.shards[number].path}/{self.shards[number].keys[member]}"

    def keys(self) -> list[str]:
        """Return the names of all samples, without the name of their shard."""
        return [key for shard in self.shards for key in shard.keys]

    def labels(self) -> npt.NDArray[np.int64]:
        """Return the class of each image; -1 without one."""
        return self._labels[self._chosen]

    def close(self) -> None:
        """Close the shards' files; the next `read` opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _place(self, index: int) -> tuple[int, int]:
        position = int(self._chosen[index])
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return number, position - int(self._starts[number])

    def _descriptor(self, number: int) -> int:
        """Return an open descriptor; the least recently used are closed."""
        if number not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[number] = os.open(self.shards[number].path, os.O_RDONLY)
        self._files.move_to_end(number)
        return self._files[number]

    def __getstate__(self) -> dict[str, Any]:
        # A descriptor means nothing in a process that was not forked from this one.
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


def index_shards(paths: Sequence[Path], warn: Callable[[str], None]) -> Iterator[ShardIndex]:
    """Yield the index of each shard; say once if indices cannot be kept.

    Raises:
        UserError: A shard is damaged.
    """
    told = False
    for path in paths:
        shard, problem = load_or_build(path)
        if problem and not told:
            told = True
            warn(f"the index of {path} cannot be kept ({problem}); it is made anew at every start")
        yield shard


def _classes(shards: Sequence[ShardIndex]) -> tuple[str, ...]:
    """Return the class names of all labels: sorted, or every number up to the greatest."""
    used = {shard.labels[i] for shard in shards for i in _first_of_each(shard.labels)} - {""}
    if used and all(label.isdecimal() for label in used):
        samples = sum(len(shard.keys) for shard in shards)
        return number_classes(max(map(int, used)), samples, "data.shards")
    return tuple(sorted(used))


def _first_of_each(labels: PackedNames) -> list[int]:
    return list({label: i for i, label in enumerate(labels)}.values())


def _positions(shard: ShardIndex, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return each label as its position in `classes`, -1 without one."""
    position = {name: i for i, name in enumerate(classes)} | {"": -1}
    labels = [str(int(label)) if label.isdecimal() else label for label in shard.labels]
    unknown = next((label for label in labels if label not in position), None)
    if unknown is not None:
        raise UserError(
            f"data.test_shards: every label must be a class of the training shards, but "
            f"{unknown!r} in {shard.path} is not"
        )
    return np.array([position[label] for label in labels], np.int64)
