"""Files in the published modular layout, written from a run's checkpoints.

FOLDER/
    checkpoint-N.pth            after epoch N, from 0
    finished_checkpoint.pth     after the last one
    log.txt                     one JSON object per epoch (`engine.modular_log`)

A ``.pth`` holds ``model`` and ``model_stages`` (`models.weights.modular_stages`), ``optimizer`` in
torch's form, ``lr_scheduler``, ``epoch`` and ``scaler`` as plain values, and under ``quadriga``
what the run knows of the model. They are for others to read: a run goes on from its own.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quadriga.engine.checkpoint.folder import list_checkpoints, step_of, verify
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.modular_contents import contents
from quadriga.engine.modular_files_config import ModularFilesConfig
from quadriga.files import fsync_file, fsync_folder

FINISHED = "finished_checkpoint.pth"

_NAME = re.compile(r"checkpoint-(\d+)\.pth")


def write_modular_files(config: ModularFilesConfig, checkpoint: Path) -> list[Path]:
    """Write the files of the epoch that a checkpoint ends; none where it ends none.

    Args:
        config: Which files.
        checkpoint: A whole checkpoint in the directory of its run.

    Returns:
        The files.

    Raises:
        OSError: A file cannot be written.
        UserError: The checkpoint, or the run's config, cannot be read.
    """
    step = step_of(checkpoint)
    epoch = config.epoch_at(step)
    if epoch is None:
        return []
    run = RunDirectory(checkpoint.parent.parent).read_config().config
    path = config.folder / f"checkpoint-{epoch}.pth"
    _write(contents(config, run, checkpoint, step), path)
    written = [path]
    if step == config.total_steps:
        written.append(config.folder / FINISHED)
        _twin(path, written[-1])
    _prune(config, epoch)
    return written


def write_missing(config: ModularFilesConfig, checkpoints: Path) -> list[Path]:
    """Write the files of a run's newest checkpoint, where it ended before they were there.

    Returns:
        The files.

    Raises:
        OSError: A file cannot be written.
        InvalidCheckpoint: The checkpoint is damaged.
        UserError: It cannot be read.
    """
    found = list_checkpoints(checkpoints)
    if not found:
        return []
    step = step_of(found[0])
    due = [config.folder / f"checkpoint-{config.epoch_at(step)}.pth"]
    due += [config.folder / FINISHED] if step == config.total_steps else []
    if config.epoch_at(step) is None or all(path.is_file() for path in due):
        return []
    verify(found[0])
    return write_modular_files(config, found[0])


def newest_epoch(folder: Path) -> int | None:
    """Return the greatest N of the files ``checkpoint-N.pth``, compared as numbers."""
    return max(_epochs_in(folder), default=None)


def _write(content: Mapping[str, Any], path: Path) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        torch.save(dict(content), beside)
        fsync_file(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _twin(path: Path, name: Path) -> None:
    """Give a file a second name; where the file system has none, make a copy."""
    beside = name.with_name(f".{name.name}.{os.getpid()}.partial")
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        try:
            os.link(path, beside)
        except OSError:
            beside.write_bytes(path.read_bytes())
            fsync_file(beside)
        beside.replace(name)
    finally:
        beside.unlink(missing_ok=True)
    fsync_folder(name.parent)


def _epochs_in(folder: Path) -> list[int]:
    return [int(found[1]) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name))]


def _prune(config: ModularFilesConfig, newest: int) -> None:
    older = sorted(epoch for epoch in _epochs_in(config.folder) if epoch <= newest)
    for epoch in older[: -config.keep]:
        (config.folder / f"checkpoint-{epoch}.pth").unlink(missing_ok=True)
