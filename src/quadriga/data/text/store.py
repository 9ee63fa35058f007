"""The tokens of a corpus on disk: flat arrays that are mapped into memory, and a header.

``tokens.bin`` (uint16, or uint32 for more than 65,536 ids), ``sentences.bin`` (int64, the start of
each sentence in the tokens, and the end), ``documents.bin`` (int64, the start of each document in
the sentences, and the end), ``keys.bin`` (uint64, a hash of each document's text) and
``header.json`` with their lengths and checksums. A store is written to a temporary folder, which is
then renamed.

One process makes the store once; other processes and runs find it by its name. It is in
``.quadriga`` beside the text. If that folder cannot be written to, it is in the folder of the
environment variable ``QUADRIGA_CACHE``, else in ``$XDG_CACHE_HOME/quadriga``
(``~/.cache/quadriga``). Its name is a hash of the files (names, sizes, times of change, first and
last 64 KiB: reading all of a large corpus at every start would take minutes), of the vocabulary,
and of the options.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, TypeVar, final

import numpy as np
import numpy.typing as npt

from quadriga.errors import UserError
from quadriga.files import parse_json

VERSION = 1

_DTYPES = {"sentences": "<i8", "documents": "<i8", "keys": "<u8"}
_BLOCK = 1 << 16
_BLOCKS = 64


class DamagedStore(Exception):
    """A store differs from what was written; the message says how."""


@final
class TokenStore:
    """The arrays of a store, mapped into memory: no copy, shared by all processes of a machine.

    A pickled store (for a data worker) is only the folder's name; unpickling opens the files again.
    """

    tokens: npt.NDArray[Any]
    """uint16 or uint32 (tokens,)."""
    sentences: npt.NDArray[np.int64]
    """int64 (sentences + 1,): the first token of each sentence, and the number of tokens."""
    documents: npt.NDArray[np.int64]
    """int64 (documents + 1,): the first sentence of each document, and the number of sentences."""
    keys: npt.NDArray[np.uint64]
    """uint64 (documents,): a hash of each document's text."""

    def __init__(self, folder: Path) -> None:
        """Open a store.

        Raises:
            DamagedStore: A file is missing or has another size; `verify` checks the contents.
        """
        self.folder = folder
        try:
            self.header = parse_json((folder / "header.json").read_text(encoding="utf-8"))
            if self.header["version"] != VERSION:
                raise DamagedStore(f"it is of version {self.header['version']}")
            for name, description in self.header["arrays"].items():
                setattr(self, name, _map(folder / f"{name}.bin", description))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedStore(str(error)) from error

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        """Pickle as the folder's name."""
        return TokenStore, (self.folder,)

    @property
    def files(self) -> list[tuple[str, int]]:
        """Name of each file of the text, and the number of its first document."""
        return [(str(name), int(first)) for name, first in self.header["files"]]

    def verify(self) -> None:
        """Compare each file with its checksum, which covers at most 4 MiB of the file.

        Raises:
            DamagedStore: A checksum differs.
        """
        for name, description in self.header["arrays"].items():
            if _checksum(self.folder / f"{name}.bin") != description["checksum"]:
                raise DamagedStore(f"{name}.bin has another checksum")


def _map(path: Path, description: dict[str, Any]) -> npt.NDArray[Any]:
    count, dtype = int(description["count"]), np.dtype(str(description["dtype"]))
    if dtype.hasobject or dtype.kind not in "iu":
        raise DamagedStore(f"{path.name} holds {dtype}")
    if path.stat().st_size != count * dtype.itemsize:
        raise DamagedStore(f"{path.name} has {path.stat().st_size} bytes")
    if not count:
        return np.empty(0, dtype)
    with path.open("rb") as file:
        # np.memmap is slower: slices are instances of its own class, which costs microseconds.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype)


def _checksum(path: Path) -> str:
    """Hash a file's size and up to 64 blocks of 64 KiB, including the first and the last."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    last = max(0, size - _BLOCK)
    step = max(_BLOCK, -(-last // (_BLOCKS - 1)))
    with path.open("rb") as file:
        for start in [*range(0, last, step), last]:
            file.seek(start)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


@final
class StoreWriter:
    """Writes a store in chunks. Use it as a context manager.

    A store that is not finished when the context ends is removed.
    """

    def __init__(self, folder: Path, vocabulary_size: int) -> None:
        """Write to a new folder beside `folder`.

        Raises:
            OSError: The folder cannot be written to.
        """
        self._folder = folder
        self._dtypes = {"tokens": "<u2" if vocabulary_size <= 1 << 16 else "<u4", **_DTYPES}
        self._partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {
            name: self._stack.enter_context((self._partial / f"{name}.bin").open("wb"))
            for name in self._dtypes
        }
        self._counts = dict.fromkeys(self._dtypes, 0)
        self._sources: list[tuple[str, int]] = []
        self._last = 0
        self._put("sentences", np.zeros(1, np.int64))
        self._put("documents", np.zeros(1, np.int64))

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    @property
    def documents(self) -> int:
        """Number of documents so far."""
        return self._counts["keys"]

    @property
    def sentence_count(self) -> int:
        """Number of sentences so far."""
        return self._counts["sentences"] - 1

    def source(self, name: str) -> None:
        """Record that the following documents are from the file `name`."""
        self._sources.append((name, self.documents))

    def sentences(self, ids: list[list[int]]) -> None:
        """Add sentences as lists of token ids, none of them empty."""
        if not ids:
            return
        ends = np.cumsum([len(sentence) for sentence in ids])
        self._put("sentences", ends + self._counts["tokens"])
        tokens = np.fromiter(itertools.chain.from_iterable(ids), np.int64, int(ends[-1]))
        self._put("tokens", tokens)

    def end_document(self, after: int, key: int) -> None:
        """End a document; a document without sentences is left out.

        Args:
            after: Number of the sentences added so far that are after the document's end.
            key: A hash of the document's text.
        """
        end = self._counts["sentences"] - 1 - after
        if end > self._last:
            self._last = end
            self._put("documents", np.array([end]))
            self._put("keys", np.array([key], np.uint64))

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        self._files[name].write(values.astype(self._dtypes[name]).tobytes())
        self._counts[name] += len(values)

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the header, flush all files and rename the temporary folder.

        Args:
            facts: JSON values about the origin of the text, for readers of the header.

        Raises:
            OSError: A file could not be written.
        """
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        arrays = {
            name: {
                "count": self._counts[name],
                "dtype": dtype,
                "checksum": _checksum(self._partial / f"{name}.bin"),
            }
            for name, dtype in self._dtypes.items()
        }
        header = {"version": VERSION, "arrays": arrays, "files": self._sources, **facts}
        with (self._partial / "header.json").open("wb") as header_file:
            header_file.write(json.dumps(header, indent=1).encode())
            header_file.flush()
            os.fsync(header_file.fileno())
        os.chmod(self._partial, 0o755)
        if self._folder.exists():  # a damaged one
            shutil.rmtree(self._folder)
        os.replace(self._partial, self._folder)
        descriptor = os.open(self._folder.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


Made = TypeVar("Made")

_LOOK = 1 << 16
_NOT_HERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""Errors of a folder, not of the disk, after which another folder is tried."""

_PATIENCE = 2.0
_AGAIN = 0.2


def digest_of(*parts: object) -> str:
    """Return a hash of JSON values as 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def digest_of_files(files: Sequence[Path], base: Path) -> str:
    """Return a hash of the files' names below `base`, sizes, times of change, heads and tails.

    Raises:
        UserError: A file cannot be read.
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
    """Return the folders that a cache may be in, the preferred one first.

    Args:
        beside: The folder of the data; None for data that are not in a folder.
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
    """Return the cached entry `name`; if it is missing or damaged, make it first.

    One process makes the entry, and the others wait. The kernel frees the lock when its owner ends.

    Args:
        folders: Folders in which the entry is searched and made, the preferred one first.
        name: Name of the entry's file or folder.
        load: Opens the entry; returns None if it is missing or damaged.
        make: Makes the entry at a path, atomically.

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
                found = load(folder / name)  # another process may have made it by now
                if found is None:
                    if alone:
                        _sweep(folder, name)
                    make(folder / name)
                    found = load(folder / name)
        except OSError as error:
            found = load(folder / name)  # without a lock, another process may have made it
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
    """Return False for a folder in the shared /tmp that another user owns or that is a link."""
    if folder.parent != Path(tempfile.gettempdir()) or not folder.is_dir():
        return True
    status = folder.lstat()
    return status.st_uid == os.getuid() and not folder.is_symlink()


def _sweep(folder: Path, name: str) -> None:
    """Remove the unfinished entries of processes that were killed."""
    for path in folder.glob(f".{name}.*"):
        if path.name != f".{name}.lock":
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold a lock; wait while another process holds it, with a message after two seconds.

    Yields whether the lock is exclusive. On a file system without locks it is not: all processes
    then make equal entries, and the last one stays.
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
