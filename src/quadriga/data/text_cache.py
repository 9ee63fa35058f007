"""The tokenised form of a corpus: made once, by one process, and found again by what it is made of.

It lives in ``.quadriga`` beside the text. Where that cannot be written to, in the folder that
``QUADRIGA_CACHE`` names, else in ``$XDG_CACHE_HOME/quadriga`` (``~/.cache/quadriga``). Its name is
a hash of the files' content (names, sizes, times of change, first and last 64 KiB: reading all
of a large corpus at every start would take minutes), of the vocabulary, and of the options.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from quadriga.errors import UserError

Made = TypeVar("Made")

_LOOK = 1 << 16
_NOT_HERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""What is wrong with a folder, not with the disk: another folder may do."""

_PATIENCE = 2.0
_AGAIN = 0.2


def digest_of(*parts: object) -> str:
    """Return 32 hexadecimal digits for JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def digest_of_files(files: Sequence[Path], base: Path) -> str:
    """Return a hash of the files' names below `base`, sizes, times of change, heads and tails.

    Raises:
        UserError: One cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        try:
            status = path.stat()
            with path.open("rb") as file:
                head = file.read(_LOOK)
                file.seek(max(0, status.st_size - _LOOK))
                tail = file.read(_LOOK)
        except OSError as error:
            raise UserError(f"the text {path} cannot be read: {error.strerror or error}") from error
        name = os.path.relpath(path, base)
        digest.update(digest_of(name, status.st_size, status.st_mtime_ns).encode())
        digest.update(hashlib.blake2b(head + tail).digest())
    return digest.hexdigest()


def cache_folders(beside: Path | None) -> list[Path]:
    """Return where a cache may be, the best first.

    Args:
        beside: The folder of the data; None for data that no folder holds.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    user = Path(os.environ.get("QUADRIGA_CACHE") or Path(home, "quadriga"))
    private = Path(tempfile.gettempdir(), f"quadriga-{os.getuid()}")
    return [*([beside / ".quadriga"] if beside is not None else []), user, private]


def find_or_make(
    folders: Sequence[Path],
    name: str,
    load: Callable[[Path], Made | None],
    make: Callable[[Path], None],
) -> Made:
    """Return what is cached under `name`, and make it first where it is missing or damaged.

    One process makes it; the others wait for it. The lock is the kernel's: it ends with its owner.

    Args:
        folders: Where it may be, and where it may be made, the best first.
        name: Name of the file or folder.
        load: Opens it; None when it is missing or damaged.
        make: Makes it at a path, whole or not at all.

    Raises:
        UserError: No folder can be written to, or the disk is full.
    """
    for folder in folders:
        found = load(folder / name) if _is_safe(folder) else None
        if found is not None:
            return found
    reason = ""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            if not _is_safe(folder):
                continue
            with _lock(folder / f".{name}.lock") as alone:
                found = load(folder / name)  # another may have made it meanwhile
                if found is None:
                    if alone:
                        _sweep(folder, name)
                    make(folder / name)
                    found = load(folder / name)
        except OSError as error:
            found = load(folder / name)  # without a lock, another may have been faster
            if found is not None:
                return found
            reason = f"{folder}: {error.strerror or error}"
            if error.errno not in _NOT_HERE:
                break
            continue
        if found is not None:
            return found
        reason = f"{folder}: what was written there reads as something else"
        break
    raise UserError(
        f"the tokenised text must be kept on disk, but cannot be written ({reason}); "
        "free some space, or name another folder with the environment variable QUADRIGA_CACHE"
    )


def _is_safe(folder: Path) -> bool:
    """Return whether nobody else can have put a cache into a folder below the shared /tmp."""
    if folder.parent != Path(tempfile.gettempdir()) or not folder.is_dir():
        return True
    status = folder.lstat()
    return status.st_uid == os.getuid() and not folder.is_symlink()


def _sweep(folder: Path, name: str) -> None:
    """Remove what processes that were killed have left half made."""
    for path in folder.glob(f".{name}.*"):
        if path.name != f".{name}.lock":
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold a lock; wait for whoever holds it, with a message after two seconds.

    Yields whether nobody else can hold it: not so on a file system without locks, where all make
    the same, and what the last one made stays.
    """
    alone = True
    with path.open("a") as file:
        start, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told and time.monotonic() - start > _PATIENCE:
                    told = True
                    if os.environ.get("RANK", "0") == "0":
                        print(
                            f"waiting for another process that tokenises the text ({path.parent})",
                            file=sys.stderr,
                            flush=True,
                        )
                time.sleep(_AGAIN)
            except OSError:
                alone = False
                break
        yield alone
