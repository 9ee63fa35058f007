"""Images in files: finding them, keeping a million names small, and reading them by index."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import final, overload

import numpy as np
import numpy.typing as npt

from quadriga.contracts import Split, UnreadableSample
from quadriga.data.images.encoded import EncodedImages
from quadriga.data.images.record import PLAIN, Decoding, ImageRecord
from quadriga.errors import MissingData, UserError, nearest
from quadriga.randomness import fold

MAX_NUMBER_CLASSES = 100_000
"""A list may number its classes up to here even where it has fewer samples."""


@final
class PackedNames(Sequence[str]):
    """A read-only list of strings in two flat buffers.

    A million paths take the size of their text, and forked workers share the memory: there are
    no objects whose reference counts would copy its pages.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Pack `names`."""
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        self.text = np.frombuffer(bytes(text), np.uint8)
        self.ends = np.frombuffer(ends.tobytes(), np.int64)

    @classmethod
    def from_arrays(cls, text: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> PackedNames:
        """Rebuild a list from its `text` and its `ends` (names + 1 positions in it, from 0)."""
        names = cls(())
        names.text, names.ends = text, ends
        return names

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one name, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        start, end = self.ends[position : position + 2]
        return os.fsdecode(self.text[start:end].tobytes())


@final
class ImageFiles(EncodedImages):
    """Image files below one folder, by index."""

    def __init__(
        self,
        root: Path,
        names: Iterable[str],
        labels: npt.NDArray[np.int64] | None,
        classes: tuple[str, ...] = (),
        decoding: Decoding = PLAIN,
        description: str = "",
    ) -> None:
        """Take the files ``root / name`` for each of `names`.

        Args:
            root: The folder the names are relative to.
            names: Relative paths, in the order of the indices.
            labels: int64 (images,), the class of each image, or None without labels.
            classes: Class names in the order of the labels.
            decoding: How the files are decoded.
            description: See `Dataset.description`.
        """
        self._root = os.fspath(root)
        self._names = PackedNames(names)
        self._labels = labels
        self.classes = classes
        self.decoding = decoding
        self.description = description

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._names)

    def read(self, index: int) -> ImageRecord:
        """Return image `index` as the bytes of its file.

        Raises:
            UnreadableSample: The file cannot be read.
        """
        path = self.name(index)
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.read()
        except OSError as error:
            raise UnreadableSample(f"{path}: {error.strerror or error}") from error
        label = None if self._labels is None else int(self._labels[index])
        return ImageRecord(data, label, path, self.decoding)

    def name(self, index: int) -> str:
        """Return the path of image `index`."""
        return os.path.join(self._root, self._names[index])

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Return the class of each image."""
        return self._labels


def check_folder(path: Path, key: str) -> None:
    """Check that `path` is a folder that can be listed.

    Args:
        path: The folder.
        key: The config path that named it, for the sentence.

    Raises:
        MissingData: It does not exist.
        UserError: It is no folder, or may not be read.
    """
    if path.is_dir():
        try:
            os.scandir(path).close()
        except OSError as error:
            raise UserError(f"{key} {path} cannot be read: {error.strerror or error}") from error
        return
    if path.exists():
        raise UserError(f"{key} must be a folder, but {path} is a file; name the folder it is in")
    near = None
    if path.parent.is_dir():
        near = nearest(path.name, (entry.name for entry in os.scandir(path.parent)))
    hint = f"did you mean {path.parent / near}?" if near else f"set {key}=FOLDER"
    raise MissingData(f"{key} must be an existing folder, but {path} does not exist; {hint}")


def number_classes(largest: int, samples: int, where: str) -> tuple[str, ...]:
    """Return the class names when labels are numbers: every number up to the largest.

    Raises:
        UserError: The numbers cannot be classes, since there would be more than samples.
    """
    if largest > max(samples, MAX_NUMBER_CLASSES):
        raise UserError(
            f"{where}: labels that are numbers must count classes from 0, but one is {largest} "
            f"among {samples} samples; name the classes, or leave the labels out"
        )
    return tuple(str(i) for i in range(largest + 1))


HELD_OUT_BY_CLASS = "held out by class"
"""`Dataset.identity` of what a hold-out has left or taken: earlier revisions drew another one."""


def in_split(
    names: Sequence[str],
    split: Split,
    holdout: float,
    labels: Sequence[int] | npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Return the positions that belong to `split` where the data itself has no test split.

    Of each class the same share is held out for testing, to the nearest whole number, but at
    least one image and never all of them. Which ones is decided by a hash of their names: by no
    other class, no order and no seed of a run, and other files of their class matter only by
    their number.

    Args:
        names: One name per sample, relative to the root of the data.
        split: Which part.
        holdout: Share of the samples that are held out, between 0 and 1; 0 holds none out.
        labels: Class of each sample; None takes all as one class.

    Returns:
        int64 positions in `names`, ascending.

    Raises:
        UserError: Nothing falls into this part.
    """
    hashes = np.fromiter((fold("holdout", name) for name in names), np.uint64, len(names))
    classes = np.zeros(len(names), np.int64) if labels is None else np.asarray(labels)
    order = np.lexsort((hashes, classes))
    _, starts, counts = np.unique(classes[order], return_index=True, return_counts=True)
    quotas = np.minimum(np.maximum(np.floor(holdout * counts + 0.5), 1), counts - 1)
    held = np.zeros(len(names), bool)
    place = np.arange(len(names)) - np.repeat(starts, counts)
    held[order] = place < np.repeat(quotas * (holdout > 0), counts)
    chosen = np.flatnonzero(held if split == "test" else ~held)
    if not len(chosen):
        raise UserError(
            f"data.holdout must leave images for both splits, but with {holdout} of {len(names)} "
            f"none are left for {split}; change data.holdout or add images"
        )
    return chosen
