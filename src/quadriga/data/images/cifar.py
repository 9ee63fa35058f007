"""CIFAR-10 and CIFAR-100 from the files of the published archives (Krizhevsky, 2009).

The binary version is mapped into memory. The python version is a set of pickles, in which
nothing is run (`data/parts/pickles.py`). Images as JPEG in class folders are ``image_folder``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from quadriga.config.base import Location
from quadriga.contracts import Dataset, DatasetConfig, Split
from quadriga.data.images.files import check_folder
from quadriga.data.images.record import ImageRecord
from quadriga.data.parts.pickles import read_plain
from quadriga.errors import UserError

_SIDE = 32
_PIXELS = 3 * _SIDE**2

Labels = Literal["fine", "coarse"]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Version:
    """The files of one published archive."""

    archive: str
    """What the archive unpacks to."""
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: dict[Labels, int]
    """Number of classes at each level of labels."""
    column: dict[Labels, int] | None
    """Binary: which byte of a record the label is; None: pickles."""
    names: dict[Labels, str]
    """Where the class names are: a text file, or a key of the pickle ``meta``."""
    meta: str = ""
    """The pickle of the class names."""
    keys: dict[Labels, str] | None = None
    """Pickles: the key of the labels."""

    def files(self, split: Split) -> tuple[str, ...]:
        return self.train if split == "train" else self.test


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

# The binary versions come first: where both are there, they need no memory.
_VERSIONS = (
    _Version(
        "cifar-10-batches-bin",
        tuple(f"{name}.bin" for name in _BATCHES),
        ("test_batch.bin",),
        {"fine": 10},
        {"fine": 0},
        {"fine": "batches.meta.txt"},
    ),
    _Version(
        "cifar-100-binary",
        ("train.bin",),
        ("test.bin",),
        {"fine": 100, "coarse": 20},
        {"coarse": 0, "fine": 1},
        {"fine": "fine_label_names.txt", "coarse": "coarse_label_names.txt"},
    ),
    _Version(
        "cifar-10-batches-py",
        _BATCHES,
        ("test_batch",),
        {"fine": 10},
        None,
        {"fine": "label_names"},
        "batches.meta",
        {"fine": "labels"},
    ),
    _Version(
        "cifar-100-python",
        ("train",),
        ("test",),
        {"fine": 100, "coarse": 20},
        None,
        {"fine": "fine_label_names", "coarse": "coarse_label_names"},
        "meta",
        {"fine": "fine_labels", "coarse": "coarse_labels"},
    ),
)


@final
class CifarConfig(DatasetConfig):
    """CIFAR-10 or CIFAR-100, whichever is found, in the binary or the python version."""

    root: Location[Path]
    """The folder with the files, or the one that the archive was unpacked in."""
    labels: Labels = "fine"
    """CIFAR-100: its 100 classes, or their 20 groups."""

    def build(self, split: Split) -> CifarDataset:
        """Open one split.

        Raises:
            UserError: The files are missing, of another form, or damaged.
        """
        check_folder(self.root, "data.root")
        folder, version = _find(self.root)
        if self.labels not in version.classes:
            raise UserError(
                f"data.labels must be fine for CIFAR-10, which {folder} holds, but is {self.labels}"
            )
        paths = [folder / name for name in version.files(split)]
        if version.column is not None:
            parts = [_read_binary(path, version, self.labels) for path in paths]
        else:
            parts = [_read_pickle(path, version, self.labels) for path in paths]
        labels = np.concatenate([label for _, label in parts])
        count = version.classes[self.labels]
        if labels.size and labels.max() >= count:
            raise UserError(
                f"data.root: labels of {folder} must be below {count}, but one is {labels.max()}; "
                f"unpack the archive anew"
            )
        names = _class_names(folder, version, self.labels)
        return CifarDataset(paths, [pixels for pixels, _ in parts], labels, names)


@final
class CifarDataset(Dataset):
    """The images of one split, in memory or mapped into it."""

    def __init__(
        self,
        paths: Sequence[Path],
        parts: Sequence[Pixels],
        labels: npt.NDArray[np.int64],
        classes: tuple[str, ...],
    ) -> None:
        """Take the images of several files.

        Args:
            paths: The files.
            parts: For each, uint8 (images, 3, 32, 32).
            labels: int64 (images of all files,).
            classes: Class names in the order of the labels.
        """
        self.classes = classes
        self._paths = paths
        self._parts = parts
        self._labels = labels
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        """Return the number of images of the split."""
        return len(self._labels)

    def read(self, index: int) -> ImageRecord:
        """Return image `index` as uint8 (32, 32, 3): a view, nothing is copied."""
        part, place = self._place(index)
        pixels = self._parts[part][place].transpose(1, 2, 0)
        return ImageRecord(pixels, int(self._labels[index]), self.name(index))

    def name(self, index: int) -> str:
        """Return the file and the number of the image in it, from 0."""
        part, place = self._place(index)
        return f"{self._paths[part]} image {place}"

    def labels(self) -> npt.NDArray[np.int64]:
        """Return the class of each image."""
        return self._labels

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - int(self._ends[part - 1] if part else 0)


def _find(root: Path) -> tuple[Path, _Version]:
    """Return the folder of the files, and which archive they are from."""
    found = [
        (folder, version)
        for version in _VERSIONS
        for folder in (root, root / version.archive)
        if all((folder / name).is_file() for name in (*version.train, *version.test))
    ]
    if not found:
        raise UserError(
            f"data.root must hold the files of CIFAR-10 or CIFAR-100, such as "
            f"{_VERSIONS[0].archive} or {_VERSIONS[3].archive}, but {root} does not; unpack the "
            f"published archive there, or use data.kind=image_folder for images in class folders"
        )
    if len({version.classes["fine"] for _, version in found}) > 1:
        raise UserError(
            f"data.root must hold CIFAR-10 or CIFAR-100, but {root} holds both; set "
            f"data.root={found[0][0]}"
        )
    return found[0]


def _read_binary(
    path: Path, version: _Version, labels: Labels
) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Map a file of records: one byte for each level of labels, then the three planes."""
    assert version.column is not None
    length = len(version.column) + _PIXELS
    size = path.stat().st_size
    if not size or size % length:
        raise _damaged(path, f"{size:,} bytes are no number of records of {length:,}")
    # A plain array over the map: slicing numpy's own class of maps costs ten times as much.
    records = np.asarray(np.memmap(path, np.uint8, mode="r")).reshape(-1, length)
    pixels = records[:, -_PIXELS:].reshape(-1, 3, _SIDE, _SIDE)
    return pixels, records[:, version.column[labels]].astype(np.int64)


def _read_pickle(
    path: Path, version: _Version, labels: Labels
) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Read a file of the python version."""
    assert version.keys is not None
    found = _plain(path)
    pixels, numbers = found.get("data"), found.get(version.keys[labels])
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise _damaged(path, f"its data is no array of {_PIXELS:,} values for each image")
    if not isinstance(numbers, list) or len(numbers) != len(pixels):
        raise _damaged(path, f"it has no {version.keys[labels]} for each image")
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise _damaged(path, f"its {version.keys[labels]} are no numbers of classes")
    return pixels.reshape(-1, 3, _SIDE, _SIDE), np.array(numbers, np.int64)


def _class_names(folder: Path, version: _Version, labels: Labels) -> tuple[str, ...]:
    """Return the names that came with the data; numbers where that file is missing."""
    count = version.classes[labels]
    path = folder / (version.meta or version.names[labels])
    if not path.is_file():
        return tuple(str(number) for number in range(count))
    if version.meta:
        found = _plain(path).get(version.names[labels])
        texts = found if isinstance(found, list) else []
        texts = [text for text in texts if isinstance(text, (bytes, str))]
        names = [text.decode("latin-1") if isinstance(text, bytes) else text for text in texts]
    else:
        names = path.read_text(encoding="utf-8", errors="replace").split()
    if len(names) != count:
        raise _damaged(path, f"it names {len(names)} classes, not {count}")
    return tuple(names)


def _plain(path: Path) -> dict[str, object]:
    try:
        return read_plain(path.read_bytes())
    except UnpicklingError as error:
        raise _damaged(path, f"it holds {error}") from error


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"data.root: {path} must be a file of a published CIFAR archive, but {reason}; unpack the "
        f"archive anew"
    )
