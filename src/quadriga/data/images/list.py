"""Images in a flat folder, or named line by line in a text file; labels are optional."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from quadriga.config.base import Location
from quadriga.contracts import Split
from quadriga.data.images.encoded import EncodedImagesConfig
from quadriga.data.images.files import (
    HELD_OUT_BY_CLASS,
    ImageFiles,
    check_folder,
    in_split,
    number_classes,
)
from quadriga.data.images.scan import Skipped, found_and_skipped, is_image, scan_images
from quadriga.errors import UserError, did_you_mean


@final
class ImageListConfig(EncodedImagesConfig):
    """All images below a folder, or those that a list file names.

    A list file has one path relative to `root` per line, after it, if there are labels, a tab or
    a space and a class: a number from 0, or a name. Empty lines and lines that start with ``#``
    are passed over. A list is looked for in the current folder, then in `root`.
    """

    root: Location[Path]
    """The folder the images are in, at any depth."""
    files: Location[Path | None] = None
    """List of the images; none: all images below `root`, without labels."""
    test_files: Location[Path | None] = None
    """List of the test images; none: a fixed hold-out of the images."""
    holdout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the images held out for testing when `test_files` is not given; 0: none are, and
    there is no test split."""

    def anchor(self, name: str, text: str) -> str:
        """Leave lists that are not in this folder relative to `root`; else see `Config.anchor`."""
        is_below = name != "root" and not Path(text).expanduser().exists()
        return text if is_below else super().anchor(name, text)

    def build(self, split: Split) -> ImageFiles:
        """Find the images of one split.

        Raises:
            UserError: A file or folder is missing or empty, or a line of a list is not valid.
        """
        check_folder(self.root, "data.root")
        skipped = Skipped()
        if self.test_files is not None and split == "test":
            test = self._read(self.test_files, "data.test_files")
            classes = () if self.files is None else _classes(self._read(self.files, "data.files"))
            return self._dataset(test, classes or _classes(test), f"{test}", skipped)
        if self.files is not None:
            entries = self._read(self.files, "data.files")
        else:
            names = scan_images(self.root, skipped)
            entries = _Entries("data.root", self.root, names, [])
            if not names:
                passed_over = f" ({text})" if (text := str(skipped)) else ""
                raise UserError(
                    f"data.root must hold images, but there are none in {self.root}{passed_over}; "
                    f"check data.root"
                )
        part = self._part(entries, split)
        whose = "to train on" if split == "train" else "held out for testing"
        text = str(entries) if part is entries else f"{entries}, {len(part.names)} of them {whose}"
        dataset = self._dataset(part, _classes(entries), text, skipped)
        if self.test_files is None:
            dataset.identity = HELD_OUT_BY_CLASS
        return dataset

    def _read(self, path: Path, key: str) -> _Entries:
        """Read the list that is called `path` in the current folder or in the root."""
        here = next((p for p in (path, self.root / path) if p.exists()), None)
        if here is not None:
            return _parse(here, key)
        looked = f"{self.root / path} does not exist"
        if not path.is_absolute():
            looked = f"{path} is neither in the current folder, {Path.cwd()}, nor in {self.root}"
        raise UserError(f"{key} must be a list of images, but {looked}; set {key}=FILE")

    def _part(self, entries: _Entries, split: Split) -> _Entries:
        """Return the entries of `split`: without the listed test images, or by the hold-out."""
        if self.test_files is None and self.holdout == 0 and split == "train":
            return entries
        if self.test_files is None:
            labels = np.unique(entries.labels, return_inverse=True)[1] if entries.labels else None
            chosen = in_split(entries.names, split, self.holdout, labels)
        elif self.files is not None:
            return entries
        else:
            test = set(self._read(self.test_files, "data.test_files").names)
            flags = np.array([name not in test for name in entries.names])
            chosen = np.flatnonzero(flags)
            if not len(chosen):
                raise UserError(
                    f"data.test_files must leave images to train on, but {self.test_files} names "
                    f"all of {self.root}; set data.files"
                )
        names = [entries.names[i] for i in chosen]
        own = [entries.labels[i] for i in chosen] if entries.labels else []
        return entries._replace(names=names, labels=own)

    def _dataset(
        self, entries: _Entries, classes: tuple[str, ...], text: str, skipped: Skipped
    ) -> ImageFiles:
        return ImageFiles(
            self.root,
            entries.names,
            _positions(entries, classes),
            classes,
            self.decoding(),
            found_and_skipped(text, skipped),
        )


class _Entries(NamedTuple):
    key: str
    """The config path they came from, for error sentences."""
    source: Path
    names: list[str]
    labels: list[str]
    """One per name, or empty."""

    def __str__(self) -> str:
        of = f" of {len(set(self.labels))} classes" if self.labels else " without labels"
        return f"{len(self.names)} images{of} in {self.source}"


def _parse(path: Path, key: str) -> _Entries:
    """Read a list file.

    Raises:
        UserError: It is missing, not text or empty, or only some of its lines have a label.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{key} {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key} must be a text file in UTF-8, but {path} is not") from error
    names: list[str] = []
    labels: list[str] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, label = _split(text)
        if names and bool(labels) != bool(label):
            raise UserError(
                f"{key}: all lines of {path} must have a label, or none, but line {number} "
                f"({text!r}) differs from the lines before it"
            )
        names.append(name)
        if label:
            labels.append(label)
    if not names:
        raise UserError(f"{key} must name images, but {path} has no lines; check {key}")
    return _Entries(key, path, names, labels)


def _split(line: str) -> tuple[str, str]:
    """Cut a line into path and label; a path may hold spaces."""
    name, tab, label = line.rpartition("\t")
    if tab:
        return name.strip(), label.strip()
    name, space, label = line.rpartition(" ")
    # "a cat.jpg" is one path with a space; "a cat.jpg 3" ends in a label.
    return (name.strip(), label) if space and not is_image(label) else (line, "")


def _classes(entries: _Entries) -> tuple[str, ...]:
    """Return the class names in the order of the labels; numbers keep their place."""
    if entries.labels and all(label.isdecimal() for label in entries.labels):
        numbers = [int(label) for label in entries.labels]
        return number_classes(max(numbers), len(numbers), f"{entries.key}: {entries.source}")
    return tuple(sorted(set(entries.labels)))


def _positions(entries: _Entries, classes: tuple[str, ...]) -> npt.NDArray[np.int64] | None:
    """Return each entry's label as a position in `classes`, or None without labels.

    Raises:
        UserError: A label is not one of the classes.
    """
    if not entries.labels:
        return None
    position = {name: i for i, name in enumerate(classes)}
    plain = [str(int(label)) if label.isdecimal() else label for label in entries.labels]
    numeric = all(name.isdecimal() for name in classes)
    used = plain if numeric else entries.labels
    for label in used:
        if label not in position:
            hint = did_you_mean(label, classes) if len(classes) <= 20 else ""
            raise UserError(
                f"{entries.key}: every label of {entries.source} must be a class of the training "
                f"list, but {label} is not{hint}"
            )
    return np.array([position[label] for label in used], np.int64)
