"""The weights of a checkpoint as one file per pipeline stage."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from quadriga.engine.checkpoint.folder import list_checkpoints, step_of, verify
from quadriga.engine.stage_files import epochs_in, write_stage
from quadriga.engine.stage_files_config import StageFilesConfig
from quadriga.weights.layouts.pipedream import FOREIGN_WORDS, TIED, WORDS, foreign_names

_OBJECTIVE = "objective."
_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")


def write_stage_files(config: StageFilesConfig, checkpoint: Path, step: int) -> list[Path]:
    """Write the files of the epoch that a checkpoint ends; none where it ends none.

    One stage after the other is read, so that the model need not fit into memory.

    Args:
        config: Which files.
        checkpoint: A whole checkpoint of a BERT with its heads.
        step: Its step.

    Returns:
        The files.

    Raises:
        OSError: A file cannot be read or written.
    """
    epoch = config.epoch_at(step)
    if epoch is None:
        return []
    reader = HuggingFaceStorageReader(str(checkpoint))
    stored = reader.read_metadata().state_dict_metadata
    names = [name.removeprefix(_OBJECTIVE) for name in stored if name.startswith(_OBJECTIVE)]
    written = []
    for stage, modules in enumerate(_names_by_stage(names, config.modules)):
        state: dict[str, Any] = {}
        for name in {name for module in modules for name in module}:
            entry = stored[_OBJECTIVE + name]
            assert isinstance(entry, TensorStorageMetadata)
            state[_OBJECTIVE + name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
        tensors = {name.removeprefix(_OBJECTIVE): tensor for name, tensor in state.items()}
        contents = [_module(names, tensors) for names in modules]
        stages = len(config.modules)
        written.append(write_stage(config.folder, stage, stages, epoch, contents))
    return written


def write_missing(config: StageFilesConfig, checkpoints: Path) -> list[Path]:
    """Write the files of the whole checkpoints whose run was killed before they were there.

    Returns:
        The files.

    Raises:
        OSError: A file cannot be read or written.
        InvalidCheckpoint: A checkpoint is damaged.
    """
    there = epochs_in(config.folder)
    written = []
    for checkpoint in list_checkpoints(checkpoints):
        step = step_of(checkpoint)
        epoch = config.epoch_at(step)
        if epoch is not None and len(there.get(epoch, [])) < len(config.modules):
            verify(checkpoint)
            written += write_stage_files(config, checkpoint, step)
    return written


def _names_by_stage(
    names: list[str], modules: tuple[tuple[int, ...], ...]
) -> Iterator[list[list[str]]]:
    """Yield the tensors of each module of each stage; the loss, last of all, has none."""
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
    """Return one module under Hugging Face's names; the last has the table that it shares."""
    ordered = sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    own = foreign_names({name: tensors[name] for name in ordered})
    if WORDS in names and "head.bias" in names:
        own[TIED] = tensors[WORDS]
        if "encoder.embeddings.norm.weight" not in names:
            del own[FOREIGN_WORDS]
    return own
