"""The files and folders that the model-assembling ``main.py`` starts from."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quadriga.engine.logs.directory import RunDirectory
from quadriga.errors import UserError
from quadriga.surfaces.model_assembling.output_files import FINISHED
from quadriga.weights.files import read_weights
from quadriga.weights.layouts.model_stages import depths_of


def expanded(patterns: Sequence[str]) -> list[str]:
    """Return paths with glob patterns expanded that the shell has not expanded."""
    found: list[str] = []
    for pattern in patterns:
        is_pattern = glob.has_magic(pattern) and not Path(pattern).exists()
        found += sorted(glob.glob(pattern)) if is_pattern else [pattern]
    return found


def source_of(path: str | Path) -> Path:
    """Return the finished file of an ``--output_dir``, else its run; other paths unchanged."""
    folder = Path(path)
    if (folder / FINISHED).is_file():
        return folder / FINISHED
    return folder / "run" if (folder / "run" / "checkpoints").is_dir() else folder


def meta_depths(meta: Path, hybrid: Sequence[int], index: int) -> tuple[int, ...]:
    """Return the blocks of each stage of a meta model.

    Args:
        meta: The path that `source_of` returned.
        hybrid: Blocks of each stage of the hybrid; all but number `index` are the meta model's.
        index: Number of the module to train.

    Raises:
        UserError: The meta model is missing or damaged, or has another cut.
    """
    stages, blocks = _cut_of(meta)
    rest = sum(hybrid) - hybrid[index]
    if stages is None:
        stages = tuple(blocks - rest if i == index else d for i, d in enumerate(hybrid))
    others = [d for i, d in enumerate(hybrid) if i != index]
    theirs = [d for i, d in enumerate(stages) if i != index]
    if len(stages) != len(hybrid) or theirs != others or min(stages) < 1:
        cut = " ".join(map(str, stages)) if min(stages) > 0 else f"{blocks} blocks in all"
        raise UserError(
            f"--divided_depths must have the blocks of the meta model ({meta}: {cut}) beside "
            f"module {index}, but is {' '.join(map(str, hybrid))}"
        )
    return stages


def _cut_of(meta: Path) -> tuple[tuple[int, ...] | None, int]:
    """Return the cut of a whole model, None if it is not recorded, and its number of blocks."""
    if not meta.exists():
        raise UserError(
            f"--meta_model: {meta} does not exist; it is what phase PT leaves in its --output_dir"
        )
    if meta.is_dir():
        folder = meta
        if (
            not (folder / "config.json").is_file()
            and (meta.parent.parent / "config.json").is_file()
        ):
            folder = meta.parent.parent
        values = RunDirectory(folder).read_config().config.as_dict()
        cut = (RunDirectory(folder).read_sidecars() or {}).get("depths")
        if values["modular"] is not None and values["modular"]["kind"] == "hybrid":
            raise UserError(f"--meta_model must be a whole model, but {meta} trained a module")
        depth: Any = values["model"].get("depth")
        return (None if cut is None else tuple(cut)), int(depth or 0)
    try:
        content = read_weights(meta)
    except UserError as error:
        raise UserError(f"--meta_model: {error}") from error
    if content.stages:
        return depths_of(content.stages, str(meta)), 0
    numbers = {name.split(".")[1] for name in content.tensors if name.startswith("blocks.")}
    own = {name.split(".")[2] for name in content.tensors if name.startswith("encoder.blocks.")}
    return None, len(numbers or own)
