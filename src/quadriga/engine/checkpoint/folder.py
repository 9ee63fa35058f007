"""The folders of checkpoints: their manifests, which of them are whole, and how one appears.

FOLDER/
    step_00001000/              a checkpoint
    .step_00002000.partial/     one that is being written
    .step_00000500.removed/     one that is being removed
    step_00001000.replaced/     the old one, while a new one of the same step takes its place
    superseded/                 what a run that went back to an earlier step has left

A kill at any moment leaves each step either whole under a name that is read, or not at all.
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

from quadriga.files import fsync_folder, write_text

MANIFEST = "manifest.json"
FORMAT = 2
"""Version of the layout. Format 1 (no checksum of the manifest itself) is read as well."""
SUFFIX = ".safetensors"
_READABLE = (1, FORMAT)
_NAME = re.compile(r"step_(\d{8,})(\.replaced)?")
_REPLACED = ".replaced"
_PIECE = 4 << 20
"""Bytes that are read at once: few calls, and a buffer that fits in the caches."""


class InvalidCheckpoint(Exception):
    """A checkpoint that must not be loaded; the message says why."""


@dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint says of itself."""

    format: int
    step: int
    config_hash: str
    world_size: int
    files: dict[str, dict[str, Any]]
    """File name -> {"bytes": int, "sha256": hexadecimal digest}."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What else the run wants to know; plain JSON."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` belongs."""
    return folder / f"step_{step:08d}"


def partial_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` is written."""
    return folder / f".step_{step:08d}.partial"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder, from its name.

    Raises:
        ValueError: It is no name of a checkpoint.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name} is no name of a checkpoint")
    return int(match[1])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a checkpoint's manifest, with the checksum of its own contents.

    Raises:
        OSError: It could not be written.
    """
    content = asdict(manifest)
    write_text(
        folder / MANIFEST, json.dumps({**content, "sha256": _own_digest(content)}, indent=2) + "\n"
    )


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        InvalidCheckpoint: There is none, or it is damaged or of an unknown format.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        digest = content.pop("sha256", None)
        manifest = Manifest(**content)
        own = None if manifest.format == 1 else _own_digest(content)
    except FileNotFoundError as error:
        raise InvalidCheckpoint("it has no manifest.json") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
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
        threads: How many files are read at a time; by default one for each core, 8 at most.

    Raises:
        InvalidCheckpoint: A file is missing, cut short, changed, or not of this checkpoint.
    """
    manifest = read_manifest(folder)
    try:
        _verify_files(folder, manifest, threads or min(8, _cores()))
    except (OSError, KeyError, TypeError, AttributeError) as error:
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
    with ThreadPoolExecutor(threads, "verify") as pool:
        digests = pool.map(lambda name: sha256_of(folder / name), manifest.files)
        for (name, expected), digest in zip(manifest.files.items(), digests, strict=True):
            if digest != expected["sha256"]:
                pool.shutdown(wait=False, cancel_futures=True)
                raise InvalidCheckpoint(f"{name} does not match its checksum")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents; hashlib lets other threads run meanwhile."""
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
    for path in sorted(folder.iterdir()):  # a replaced one counts where nothing replaces it
        if _NAME.fullmatch(path.name) and path.is_dir():
            found.setdefault(step_of(path), path)
    return [found[step] for step in sorted(found, reverse=True)]


def newest_valid(folder: Path, say: Callable[[str], None], up_to: int | None = None) -> Path | None:
    """Return the newest checkpoint that verifies, and say which ones were passed over and why.

    Args:
        folder: The folder of the checkpoints.
        say: Told which checkpoints are passed over.
        up_to: Checkpoints of later steps do not count.
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
    """Move the checkpoints after `step` into ``superseded``: the run goes on from before them.

    Left in place they would be the newest at the next resumption, with a gap in the metrics.
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
    """Give a finished checkpoint its name; one of the same step stays until the new one is there.

    Raises:
        OSError: It could not be renamed; the old one is still there.
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
    """Remove a checkpoint: it is renamed first, so that no half of one is ever listed.

    What cannot be removed is left and tried again by `clear_leftovers`.
    """
    removed = path.with_name(f".{path.name}.removed")
    with contextlib.suppress(OSError):
        os.rename(path, removed)
        shutil.rmtree(removed, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed saves and removals have left.

    What cannot be removed, since another process reads it on a network file system, is left: it
    is in nobody's way.

    Raises:
        OSError: An old checkpoint could not be given its name back.
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
