"""Checkpoint folders: manifests, verification, atomic publication and removal.

FOLDER/
    step_00001000/              a checkpoint
    .step_00002000.partial/     one that is being written
    .step_00000500.removed/     one that is being removed
    step_00001000.replaced/     the old one, while a new one of the same step replaces it
    superseded/                 later checkpoints of a run that resumed from an earlier step

After a kill at any moment, each step is either complete under a name that is read, or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quadriga.files import fsync_folder, parse_json, write_text

MANIFEST = "manifest.json"
FORMAT = 2
"""Version of the layout. Format 1 (no checksum of the manifest itself) is read as well."""
SUFFIX = ".safetensors"
_READABLE = (1, FORMAT)
_NAME = re.compile(r"step_(\d{8,})(\.replaced)?")
_REPLACED = ".replaced"
_PIECE = 4 << 20
"""Bytes per read: large enough for few calls, small enough for the CPU's caches."""


class InvalidCheckpoint(Exception):
    """A checkpoint that must not be loaded; the message names the cause."""


@dataclass(frozen=True)
class Manifest:
    """The content of a checkpoint's manifest.json."""

    format: int
    step: int
    config_hash: str
    world_size: int
    files: dict[str, dict[str, Any]]
    """File name -> {"bytes": int, "sha256": hexadecimal digest}."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further values of the run; plain JSON."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of `step`."""
    return folder / f"step_{step:08d}"


def partial_path(folder: Path, step: int) -> Path:
    """Return the path at which the checkpoint of `step` is written before it is published."""
    return folder / f".step_{step:08d}.partial"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder, from its name.

    Raises:
        ValueError: It is not the name of a checkpoint.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name} is no name of a checkpoint")
    return int(match[1])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a checkpoint's manifest with the checksum of its own content.

    Raises:
        OSError: It cannot be written.
    """
    content = asdict(manifest)
    write_text(
        folder / MANIFEST, json.dumps({**content, "sha256": _own_digest(content)}, indent=2) + "\n"
    )


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        InvalidCheckpoint: The manifest is missing, damaged or of an unknown format.
    """
    try:
        content = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        digest = content.pop("sha256", None)
        manifest = Manifest(**content)
        own = None if manifest.format == 1 else _own_digest(content)
    except FileNotFoundError as error:
        raise InvalidCheckpoint("it has no manifest.json") from error
    # Hostile content can raise anything: a number too large, a list in place of a group.
    except Exception as error:
        raise InvalidCheckpoint(f"its manifest.json is damaged ({error})") from error
    if manifest.format not in _READABLE:
        raise InvalidCheckpoint(f"its format is {manifest.format}, this version reads {FORMAT}")
    if digest != own:
        raise InvalidCheckpoint("its manifest.json is damaged (it does not match its checksum)")
    return manifest


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verify(folder: Path, threads: int | None = None) -> Manifest:
    """Check every file of a checkpoint against its manifest, several files at a time.

    Args:
        folder: The checkpoint.
        threads: How many files are read at a time; by default one per core, at most 8.

    Raises:
        InvalidCheckpoint: A file is missing, truncated, changed or not listed in the manifest.
    """
    manifest = read_manifest(folder)
    try:
        _verify_files(folder, manifest, threads or min(8, _cores()))
    except (InvalidCheckpoint, MemoryError):
        raise
    except Exception as error:
        raise InvalidCheckpoint(f"it cannot be checked ({error!r})") from error
    return manifest


def _verify_files(folder: Path, manifest: Manifest, threads: int) -> None:
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise InvalidCheckpoint(f"{name} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise InvalidCheckpoint(f"{name} has {size} bytes instead of {expected['bytes']}")
    strangers = sorted(
        p.name for p in folder.iterdir() if p.suffix == SUFFIX and p.name not in manifest.files
    )
    if strangers:
        raise InvalidCheckpoint(f"{strangers[0]} does not belong to it")

    def digest_of(name: str) -> str:
        try:
            return sha256_of(folder / name)
        except OSError as error:
            raise InvalidCheckpoint(f"{name} cannot be read: {error.strerror}") from error

    with ThreadPoolExecutor(threads, "verify") as pool:
        digests = pool.map(digest_of, manifest.files)
        for (name, expected), digest in zip(manifest.files.items(), digests, strict=True):
            if digest != expected["sha256"]:
                pool.shutdown(wait=False, cancel_futures=True)
                raise InvalidCheckpoint(f"{name} does not match its checksum")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text; hashing releases the GIL."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders below `folder`, newest first."""
    if not folder.is_dir():
        return []
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):  # .replaced counts only if its replacement is missing
        if _NAME.fullmatch(path.name) and path.is_dir():
            found.setdefault(step_of(path), path)
    return [found[step] for step in sorted(found, reverse=True)]


def newest_valid(folder: Path, say: Callable[[str], None], up_to: int | None = None) -> Path | None:
    """Return the newest checkpoint that verifies; None if there is none.

    Args:
        folder: The folder of the checkpoints.
        say: Called with one line for each checkpoint that fails verification.
        up_to: Last step to consider; all if None.
    """
    for path in list_checkpoints(folder):
        if up_to is not None and step_of(path) > up_to:
            continue
        try:
            verify(path)
        except InvalidCheckpoint as error:
            say(f"checkpoint {path} is passed over: {error}")
        else:
            return path
    return None


def set_aside_after(folder: Path, step: int) -> None:
    """Move the checkpoints after `step` into ``superseded``, because the run resumes from `step`.

    Otherwise the next resumption would load one of them, and the metrics would have a gap.
    """
    for path in list_checkpoints(folder):
        if step_of(path) > step:
            aside = folder / "superseded"
            aside.mkdir(exist_ok=True)
            target = checkpoint_path(aside, step_of(path))
            if target.exists():
                shutil.rmtree(target)
            os.rename(path, target)


def publish(partial: Path, final: Path) -> None:
    """Rename a finished checkpoint; an old one of the same step stays until the new one is there.

    Raises:
        OSError: It cannot be renamed; the old one is still there.
    """
    replaced = final.with_name(final.name + _REPLACED)
    if not final.exists():
        os.rename(partial, final)
        fsync_folder(final.parent)
    else:
        if replaced.exists():
            shutil.rmtree(replaced)
        os.rename(final, replaced)
        try:
            os.rename(partial, final)
        except OSError:
            os.rename(replaced, final)
            raise
        fsync_folder(final.parent)
    if replaced.exists():
        shutil.rmtree(replaced, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a partly removed one is never listed.

    `clear_leftovers` retries what cannot be removed.
    """
    removed = path.with_name(f".{path.name}.removed")
    with contextlib.suppress(OSError):
        os.rename(path, removed)
        shutil.rmtree(removed, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove the remains of killed saves and removals.

    Folders that cannot be removed, because another process reads them on a network file system,
    stay; readers ignore them.

    Raises:
        OSError: A replaced checkpoint whose replacement is missing cannot be renamed back.
    """
    if not folder.is_dir():
        return
    for suffix in (".partial", ".removed"):
        for path in folder.glob(f".step_*{suffix}"):
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"step_*{_REPLACED}"):
        final = path.with_name(path.name.removesuffix(_REPLACED))
        if final.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.rename(path, final)
