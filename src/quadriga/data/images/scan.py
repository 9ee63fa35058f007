"""Finding image files in folders, and counting what is passed over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import final

from quadriga.data.images.decode import readable_suffixes, remedy
from quadriga.errors import UserError

_REASONS, _NAMES, _LENGTH = 6, 2, 40
"""Reasons in a summary, names of each, and characters of a name."""

_ARCHIVE_FORK = "__MACOSX"
"""The folder in which macOS's archives keep resource forks named like the images."""


@final
class Skipped:
    """Counts what a scan passes over, by reason, and keeps the first names of each."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count files or folders.

        Args:
            reason: Why they are passed over, as it follows a number: "hidden".
            name: One of them.
            count: How many.
        """
        self._counts[reason] = self._counts.get(reason, 0) + count
        names = self._names.setdefault(reason, [])
        if len(names) < _NAMES:
            names.append(printable(name))

    def add_file(self, path: str) -> None:
        """Count a file that is no image by its suffix."""
        suffix = printable(os.path.splitext(path)[1].lower())
        self.add(advised(f"with suffix {suffix}" if suffix else "without suffix", path), path)

    def __str__(self) -> str:
        """Return one line such as ``3 with suffix .heic (a.heic, ...)``; empty without any."""
        most = sorted(self._counts, key=lambda reason: -self._counts[reason])
        parts = []
        for reason in most[:_REASONS]:
            count, names = self._counts[reason], self._names[reason]
            shown = [*names, "..."] if count > len(names) else names
            parts.append(f"{count} {reason} ({', '.join(shown)})")
        if rest := sum(self._counts[reason] for reason in most[_REASONS:]):
            parts.append(f"{rest} for other reasons")
        return ", ".join(parts)


def advised(reason: str, name: str) -> str:
    """Return `reason` with what would make the file readable, if anything would."""
    return f"{reason}, which {advice}," if (advice := remedy(name)) else reason


def printable(name: str) -> str:
    """Return a file's name on one short line: without control characters, its end if it is long."""
    clean = "".join(char if char.isprintable() else "?" for char in name)
    return clean if len(clean) <= _LENGTH else f"...{clean[-_LENGTH:]}"


def found_and_skipped(found: str, skipped: Skipped) -> str:
    """Return the line that describes a data set: what was found, and what was skipped."""
    return f"{found}; skipped: {text}" if (text := str(skipped)) else found


def subfolders(folder: Path, skipped: Skipped) -> list[str]:
    """Return the names of the folders directly in `folder`, sorted.

    Args:
        folder: Where to look.
        skipped: Gets hidden folders, and the files beside the folders.

    Raises:
        UserError: The folder cannot be read.
    """
    found = []
    for name, is_folder in _entries(os.fspath(folder), "", skipped):
        if is_folder:
            found.append(name)
        elif is_image(name):
            skipped.add("beside the class folders", name)
        else:
            skipped.add_file(name)
    return sorted(found)


def holds_image(folder: Path) -> bool:
    """Return whether there is an image below a folder, at any depth; the first one ends it."""
    return next(_images_below(os.fspath(folder), "", Skipped()), None) is not None


def scan_images(folder: Path, skipped: Skipped, prefix: str = "") -> list[str]:
    """Return the images below a folder at any depth, sorted.

    Args:
        folder: Where to look; links to folders are followed.
        skipped: Gets hidden files and folders, and files that are no images.
        prefix: Put before each name.

    Returns:
        Paths relative to `folder`, with ``/`` between their parts.

    Raises:
        UserError: A folder below cannot be read.
    """
    return sorted(_images_below(os.fspath(folder), prefix, skipped))


def _images_below(folder: str, prefix: str, skipped: Skipped) -> Iterator[str]:
    deeper = []
    for name, is_folder in _entries(folder, prefix, skipped):
        if is_folder:
            deeper.append(name)
        elif is_image(name):
            yield prefix + name
        else:
            skipped.add_file(prefix + name)
    for name in deeper:
        yield from _images_below(os.path.join(folder, name), f"{prefix}{name}/", skipped)


def _entries(folder: str, prefix: str, skipped: Skipped) -> Iterator[tuple[str, bool]]:
    """Yield each entry that is not hidden: its name, and whether it is a folder."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    skipped.add("hidden", prefix + entry.name)
                elif not entry.is_dir():
                    yield entry.name, False
                elif entry.name == _ARCHIVE_FORK:
                    skipped.add("of resource forks", f"{prefix}{entry.name}/")
                else:
                    yield entry.name, True
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror or error}") from error


def is_image(name: str) -> bool:
    """Return whether the suffix of `name` is that of a format that can be read."""
    return os.path.splitext(name)[1].lower() in readable_suffixes()
