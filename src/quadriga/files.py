"""Atomic writes of files, and locks.

A lock is held by one process at a time; the kernel frees it however that process ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import weakref
from pathlib import Path
from typing import IO, Any


def fsync_file(path: Path) -> None:
    """Flush a file's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    fsync_file(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: to a temporary file beside `path`, flushed and then renamed.

    Raises:
        OSError: The file could not be written; an existing file at `path` is unchanged.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


_MOST_LEVELS = 100
"""Groups and lists within each other; more would exhaust the stack of whoever walks them."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not JSON, or is nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested in more than {_MOST_LEVELS} levels") from error
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(_MOST_LEVELS):
        if not level:
            return value
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
    raise ValueError(f"it is nested in more than {_MOST_LEVELS} levels")


LOCK = ".lock"
"""Name of the file that is locked."""

_TRIES = 5
_PAUSE_SECONDS = 0.05


def take_lock(path: Path) -> IO[str] | None:
    """Lock a file for as long as the returned file stays open.

    On a file system without locks every call succeeds; the user must then keep processes apart.

    Returns:
        The open file; None when another process holds the lock.

    Raises:
        OSError: The file cannot be made.
    """
    stream = path.open("w")
    # A forked process shares the open file and with it the lock. A data worker is a fork; it may
    # outlive this process, stuck in a read, and must not keep the next run out.
    held = weakref.ref(stream)
    os.register_at_fork(after_in_child=lambda: _close(held()))
    for left in reversed(range(_TRIES)):
        if _try(stream):
            return stream
        if left:  # `is_locked` in another process may hold the lock for a moment
            time.sleep(_PAUSE_SECONDS)
    stream.close()
    return None


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock; the check takes a shared lock for a moment."""
    try:
        with path.open("r") as stream:
            return not _try(stream, fcntl.LOCK_SH)
    except OSError:
        return False


def _try(stream: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _close(stream: IO[str] | None) -> None:
    if stream is not None:
        stream.close()
