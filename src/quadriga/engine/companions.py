"""The files that a run writes for others beside its checkpoints, where its config asks for any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quadriga.engine.checkpoint.folder import step_of
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.modular_files import write_modular_files
from quadriga.engine.modular_log import log_epoch
from quadriga.engine.run_config import CheckpointConfig
from quadriga.engine.stage_export import write_stage_files


def write_companions(config: CheckpointConfig, checkpoint: Path) -> list[str]:
    """Write what is due with a whole checkpoint, which has all that is needed to write it later.

    Returns:
        A line for each kind of file that could not be written.
    """
    failures = []
    if config.stage_files is not None:
        try:
            write_stage_files(config.stage_files, checkpoint, step_of(checkpoint))
        except Exception as error:  # the checkpoint is there, and they can be written from it
            failures.append(f"the files of the stages were not written: {error}")
    if config.modular_files is not None:
        try:
            write_modular_files(config.modular_files, checkpoint)
        except Exception as error:  # as above
            failures.append(f"{config.modular_files.folder} was not written to: {error}")
    return failures


def log_companions(
    config: CheckpointConfig, run: Path, step: int, numbers: Mapping[str, float]
) -> list[str]:
    """Write down what was found of the state after `step`.

    Returns:
        A line for each file that could not be written.
    """
    if config.modular_files is None:
        return []
    try:
        log_epoch(config.modular_files, RunDirectory(run), step, numbers)
    except OSError as error:
        return [f"the log in {config.modular_files.folder} was not written: {error.strerror}"]
    return []
