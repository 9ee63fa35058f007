"""``--load DIR``: where a run of the documented BERT commands starts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import RunConfig, identity
from quadriga.errors import UserError
from quadriga.surfaces.pipedream_bert.stage_files import choose_files, epochs_in, read_stages
from quadriga.weights.files import write_tensors
from quadriga.weights.layouts.pipedream import FOREIGN_WORDS, TIED, own_names


class Start(NamedTuple):
    """The start of a run: step 0 with random weights if both are None."""

    resume_from: Path | None
    """Directory of a run to resume from."""
    warm_start: str | None
    """Path of initial weights."""


def merged_file(work_dir: Path) -> Path:
    """Return the file for the merged weights of all stages, beside the run's directory."""
    return work_dir.parent / f"{work_dir.name}.start.safetensors"


def find_start(folder: Path | None, work_dir: Path, config: RunConfig, console: Console) -> Start:
    """Return the start that ``--load`` gives a run without a checkpoint; called on rank 0.

    If the folder holds the same run, training resumes from it. If it holds another run, or stage
    files, training begins at step 0 with their weights.

    Args:
        folder: A ``--checkpoint_dir``, a run's folder, or None.
        work_dir: Directory of the run.
        config: The run's config.
        console: Receives a line on the choice.

    Raises:
        UserError: The folder holds nothing to start from.
    """
    if folder is None:
        return Start(None, None)
    if not folder.is_dir():
        raise UserError(f"--load must be an existing folder, but {folder} is none")
    for candidate in (folder / "run", folder):
        directory = RunDirectory(candidate)
        if candidate.resolve() == work_dir.resolve():
            continue
        if directory.config.is_file() and list_checkpoints(directory.checkpoints):
            if identity(directory.read_config().config) == identity(config):
                console.say(f"--load: going on with the run in {candidate}")
                return Start(candidate, None)
            console.say(f"--load: the weights of the run in {candidate}; training begins anew")
            return Start(None, str(candidate))
    if not epochs_in(folder):
        if folder.resolve() == work_dir.parent.resolve():
            return Start(None, None)  # this run's own folder, before its first checkpoint
        raise UserError(
            f"--load must name a folder that a run was saved to, but {folder} holds neither a run "
            "nor checkpoint.0.pth.tar.epoch.0"
        )
    files = choose_files(folder, -1, -1)
    merged = merged_file(work_dir)
    tensors = read_stages(files)
    if TIED in tensors and not torch.equal(tensors[TIED], tensors[FOREIGN_WORDS]):
        console.warn(
            "--load: the output layer of these files has a table of words of its own; that of the "
            "embeddings is taken, which this project's models share"
        )
    write_tensors(own_names(tensors), merged)
    console.say(f"--load: the weights of {files[-1].name} and its like; training begins anew")
    return Start(None, str(merged))
