"""One file per pipeline stage and epoch: ``checkpoint.<stage>.pth.tar.epoch.<epoch>``.

The layout is PipeDream's: ``{"epoch": finished epochs, "arch": "bert", "state_dict": {"module0":
tensors, "module1": ...}}`` with the modules of the stage; the last module of the last stage is the
loss, which has no tensors. This project adds the key ``stages``, the number of stages. The files
hold weights only, and are written from the run's own checkpoints, from which it resumes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from quadriga.engine.checkpoint.folder import list_checkpoints, step_of, verify
from quadriga.engine.checkpoint.read import OBJECTIVE, read_stored, stored_tensors
from quadriga.engine.logs.directory import RunDirectory
from quadriga.errors import UserError
from quadriga.weights.layouts.pipedream import FOREIGN_WORDS, TIED, WORDS, assemble, foreign_names

Modules = Sequence[Mapping[str, Tensor]]

_NAME = re.compile(r"checkpoint\.(\d+)\.pth\.tar\.epoch\.(\d+)")
_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class StageFiles:
    """Which files a run writes in addition to its checkpoints."""

    folder: Path
    """The folder of the files; it exists."""
    epoch_steps: int
    """Optimizer steps of an epoch; checkpoints at its multiples get files."""
    total_steps: int
    """Optimizer steps of the run; its last checkpoint gets files too."""
    modules: tuple[tuple[int, ...], ...]
    """For each stage, the number of blocks of each of its modules."""

    def epoch_at(self, step: int) -> int | None:
        """Return the epoch, from 0, that ends after `step` steps; None if none does."""
        if step % self.epoch_steps and step != self.total_steps:
            return None
        return -(-step // self.epoch_steps) - 1

    def on_saved(self, checkpoint: Path) -> None:
        """Write the files of a complete checkpoint; see `CheckpointStore`."""
        RunDirectory(checkpoint.parent.parent).write_sidecars(asdict(self))
        write_stage_files(self, checkpoint)


def stage_file(folder: Path, stage: int, epoch: int) -> Path:
    """Return the path of a stage's weights after an epoch; both are counted from 0."""
    return folder / f"checkpoint.{stage}.pth.tar.epoch.{epoch}"


def epochs_in(folder: Path) -> dict[int, list[int]]:
    """Return epoch -> stages whose files a folder has, ascending."""
    found: dict[int, list[int]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _NAME.fullmatch(path.name)
        if match is not None:
            found.setdefault(int(match[2]), []).append(int(match[1]))
    return {epoch: sorted(found[epoch]) for epoch in sorted(found)}


def write_stage(folder: Path, stage: int, stages: int, epoch: int, modules: Modules) -> Path:
    """Write one stage's file atomically, and return its path.

    Args:
        folder: An existing folder.
        stage: Number of the stage, from 0.
        stages: Number of stages.
        epoch: The epoch that has just ended, from 0.
        modules: The tensors of each of the stage's modules, under Hugging Face's names.

    Raises:
        OSError: The file cannot be written.
    """
    path = stage_file(folder, stage, epoch)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    content = {
        "epoch": epoch + 1,
        "arch": "bert",
        "stages": stages,
        "state_dict": {f"module{i}": dict(module) for i, module in enumerate(modules)},
    }
    try:
        torch.save(content, beside)
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def choose_files(folder: Path, epoch: int, stages: int) -> list[Path]:
    """Return the files of an epoch, one per stage.

    Args:
        folder: The folder of the files.
        epoch: The epoch, from 0; -1 for the newest.
        stages: Required number of stages; -1 to infer it from the files.

    Raises:
        UserError: A file is missing.
    """
    found = epochs_in(folder)
    if not found:
        raise UserError(
            f"--checkpoint_path must name a folder with files such as "
            f"checkpoint.0.pth.tar.epoch.0, but {folder} has none"
        )
    epoch = max(found) if epoch == -1 else epoch
    if epoch not in found:
        raise UserError(
            f"--epoch must be one that {folder} has ({_listed(list(found))}), but is {epoch}"
        )
    there = found[epoch]
    stages = max(there) + 1 if stages == -1 else stages
    if stages < 1:
        raise UserError(f"--num_stages must be at least 1, or -1, but is {stages}")
    for stage in range(stages):
        if stage not in there:
            raise UserError(
                f"{stage_file(folder, stage, epoch)} is missing: --num_stages is {stages}, but of "
                f"epoch {epoch} there are the stages {_listed(there)} only"
            )
    return [stage_file(folder, stage, epoch) for stage in range(stages)]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def read_stages(files: Sequence[Path]) -> dict[str, Tensor]:
    """Read the files of all stages, in order, to the CPU, under Hugging Face's names.

    Raises:
        UserError: A file cannot be read, or the files do not make up a whole BERT.
    """
    modules: list[Mapping[str, Tensor]] = []
    for path in files:
        content = _load(path)
        stages = content.get("stages", len(files))
        if stages != len(files):
            raise UserError(
                f"{path} was written by a run with {stages} stages, but --num_stages is "
                f"{len(files)}; use {stages}"
            )
        modules += _modules_of(content, path)
    return assemble(modules, str(files[0].parent))


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds Python objects beside tensors, which are not loaded "
            "because they can run code; save it again with state_dict alone"
        ) from error
    # On a damaged file, torch's reader may raise any exception.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a whole torch file: {reason}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise UserError(f"{path} must hold a state_dict of modules, but does not")
    return content


def _modules_of(content: Mapping[str, Any], path: Path) -> list[Mapping[str, Tensor]]:
    state = content["state_dict"]
    modules = [state[f"module{i}"] for i in range(len(state)) if f"module{i}" in state]
    tensors = [
        {str(name): value for name, value in module.items() if isinstance(value, Tensor)}
        for module in modules
        if isinstance(module, Mapping)
    ]
    if not tensors:
        raise UserError(f"{path} must hold a state_dict with module0, module1, ..., but does not")
    return list(tensors)


def write_stage_files(files: StageFiles, checkpoint: Path) -> list[Path]:
    """Write the files of the epoch that a checkpoint ends; nothing if it ends no epoch.

    Stages are read one at a time, so that the whole model need not fit into memory.

    Args:
        files: Which files.
        checkpoint: A complete checkpoint of a BERT with its heads.

    Returns:
        The written files.

    Raises:
        OSError: A file cannot be read or written.
    """
    epoch = files.epoch_at(step_of(checkpoint))
    if epoch is None:
        return []
    stored = [tensor.name for tensor in stored_tensors(checkpoint)]
    names = [name.removeprefix(OBJECTIVE) for name in stored if name.startswith(OBJECTIVE)]
    written = []
    for stage, modules in enumerate(_names_by_stage(names, files.modules)):
        wanted = {OBJECTIVE + name for module in modules for name in module}
        read = read_stored(checkpoint, sorted(wanted))
        tensors = {name.removeprefix(OBJECTIVE): tensor for name, tensor in read.items()}
        contents = [_module(names, tensors) for names in modules]
        stages = len(files.modules)
        written.append(write_stage(files.folder, stage, stages, epoch, contents))
    return written


def write_missing(files: StageFiles, checkpoints: Path) -> list[Path]:
    """Write the missing files of all complete checkpoints, after an interruption.

    Returns:
        The written files.

    Raises:
        OSError: A file cannot be read or written.
        InvalidCheckpoint: A checkpoint is damaged.
    """
    there = epochs_in(files.folder)
    written = []
    for checkpoint in list_checkpoints(checkpoints):
        step = step_of(checkpoint)
        epoch = files.epoch_at(step)
        if epoch is not None and len(there.get(epoch, [])) < len(files.modules):
            verify(checkpoint)
            written += write_stage_files(files, checkpoint)
    return written


def _names_by_stage(
    names: list[str], modules: tuple[tuple[int, ...], ...]
) -> Iterator[list[list[str]]]:
    """Yield for each stage the tensor names of each module; the loss, the last one, has none."""
    first, last = 0, sum(len(of_stage) for of_stage in modules) - 1
    position = 0
    for stage, of_stage in enumerate(modules, start=1):
        found: list[list[str]] = []
        for blocks in of_stage:
            own = range(first, first + blocks)
            found.append([n for n in names if _belongs(n, own, position == 0, position == last)])
            first, position = own.stop, position + 1
        yield [*found, []] if stage == len(modules) else found


def _belongs(name: str, blocks: range, is_first: bool, is_last: bool) -> bool:
    block = _BLOCK.match(name)
    if block is not None:
        return int(block[1]) in blocks
    if name.startswith("encoder.embeddings."):
        return is_first or (is_last and name == WORDS)
    return is_last


def _module(names: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a module's tensors under Hugging Face's names; the head repeats the tied table."""
    ordered = sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    own = foreign_names({name: tensors[name] for name in ordered})
    if WORDS in names and "head.bias" in names:
        own[TIED] = tensors[WORDS]
        if "encoder.embeddings.norm.weight" not in names:
            del own[FOREIGN_WORDS]
    return own
