"""Files of named tensors: safetensors, and torch's own format read without unpickling objects."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from quadriga.errors import UserError
from quadriga.weights.layouts.model_stages import (
    NOTES,
    PATCHES,
    STAGES,
    join_stages,
    without_aliases,
)
from quadriga.weights.prefixes import prefixes_of, take
from quadriga.weights.report import listed

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
NESTED_UNDER = ("model", "state_dict")
"""Keys under which checkpoints of other systems keep the weights."""
_MOST_LEVELS = 8
"""Groups within each other that are looked into; a damaged file may hold a group in itself."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a file to the CPU.

    Args:
        path: A ``.safetensors`` file, or a ``.pth``, ``.pt`` or ``.bin`` file that holds nothing
            but tensors and plain values. If a file in the modular layout holds only stages, they
            are joined.

    Raises:
        UserError: The file is missing, damaged, of another format, or holds Python objects.
    """
    return read_weights(path).tensors


class FileContent(NamedTuple):
    """The content of a file of weights."""

    tensors: dict[str, Tensor]
    """The tensors of the whole model."""
    stages: tuple[dict[str, Tensor], ...] = ()
    """The tensors of each stage; empty unless the file is in the modular layout."""
    notes: Mapping[str, Any] | None = None
    """Plain values that files of this project hold beside the tensors."""
    group: str = ""
    """The group of the file that `tensors` are from, such as ``state_dict.``; empty without one."""


def read_weights(path: Path) -> FileContent:
    """Read a file of weights; torch's zip files are memory-mapped, so only used tensors are read.

    Raises:
        UserError: As `read_tensors`.
    """
    if path.is_dir():
        raise UserError(f"the weights must be a file, but {path} is a folder; name a file in it")
    check_suffix(path)
    if not path.is_file():
        raise UserError(f"the weights must be an existing file, but {path} is none")
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as opened:
                notes = opened.metadata()
            return FileContent(safetensors.torch.load_file(path), notes=notes)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from error
    content = _read_torch(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} must hold named tensors, but holds a {type(content).__name__}")
    stages = _stages_in(content, path)
    notes = content.get(NOTES)
    group, tensors = _tensors_in(content, stages, path)
    return FileContent(tensors, stages, notes if isinstance(notes, Mapping) else None, group)


def _read_torch(path: Path) -> Any:
    try:
        # With a memory map, optimizer moments in the same file are never read from the disk.
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds Python objects beside tensors, which are not loaded "
            f"because they can run code; save its tensors alone, as a .safetensors file"
        ) from error
    # A damaged file can make torch's reader raise nearly any exception.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a whole torch file: {reason}") from error


def _stages_in(content: Mapping[Any, Any], path: Path) -> tuple[dict[str, Tensor], ...]:
    found = content.get(STAGES, ())
    if not isinstance(found, list | tuple) or not all(isinstance(s, Mapping) for s in found):
        raise UserError(f"{path}: {STAGES} must be a list with the named tensors of each stage")
    stages = tuple(_named(stage) for stage in found)
    prefixes = prefixes_of(stages[0], PATCHES) if stages else []
    if not prefixes:
        return stages
    prefix = take(stages[0], prefixes, path).prefix
    return tuple({name.removeprefix(prefix): t for name, t in stage.items()} for stage in stages)


def _tensors_in(
    content: Mapping[Any, Any], stages: tuple[dict[str, Tensor], ...], path: Path
) -> tuple[str, dict[str, Tensor]]:
    """Return the group of the file that holds the weights, and its tensors."""
    group = ""
    for _ in range(_MOST_LEVELS):
        key = next((k for k in NESTED_UNDER if isinstance(content.get(k), Mapping)), None)
        if key is None:
            break
        content, group = content[key], f"{group}{key}."
    if stages:
        return group, without_aliases(_named(content)) or join_stages(stages, str(path))
    tensors = dict(_flat(content, "", _MOST_LEVELS))
    if not tensors:
        held = listed([str(key) for key in content]) or "nothing"
        raise UserError(f"{path} holds no tensors, only: {held}")
    return group, tensors


def _flat(content: Mapping[Any, Any], prefix: str, levels: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested groups, such as ``teacher`` and ``student``, by dotted name."""
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping) and levels > 1:
            yield from _flat(value, f"{prefix}{name}.", levels - 1)


def _named(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, notes: Mapping[str, str] | None = None
) -> None:
    """Write named tensors atomically: the file appears whole or not at all.

    Args:
        tensors: Tensors on any device.
        path: The file; its suffix decides the format, as for `read_tensors`.
        notes: Entries of the header of a safetensors file; other formats ignore them.

    Raises:
        UserError: Another suffix, or the file cannot be written.
    """
    check_suffix(path)
    whole = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix == ".safetensors":
                beside.touch()
                mode = beside.stat().st_mode
                safetensors.torch.save_file(
                    whole, beside, metadata={"format": "pt", **(notes or {})}
                )
                beside.chmod(
                    mode
                )  # some versions of safetensors write files that only the owner can read
            else:
                torch.save(whole, beside)
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the weights to {path}: {error}") from error


def check_suffix(path: Path) -> None:
    """Check that a file name ends in the suffix of a known format.

    Raises:
        UserError: The suffix is another one.
    """
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        valid = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise UserError(f"a file of weights must end in {valid}, but {path.name!r} does not")
