"""``main.py``: the documented command for training vision transformers module by module."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.config.provenance import COMMAND_LINE, Resolved, read_overrides
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import read_launch
from quadriga.distributed.process_group import process_group
from quadriga.engine.checkpoint.store import InvalidCheckpoint, list_checkpoints
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.resume import Request
from quadriga.engine.run_config import RunConfig, complete
from quadriga.engine.session import run
from quadriga.errors import UserError
from quadriga.report.run import write_report
from quadriga.surfaces.command import run_command, translate_message
from quadriga.surfaces.model_assembling.evaluate import evaluate
from quadriga.surfaces.model_assembling.flags import read_flags
from quadriga.surfaces.model_assembling.output_files import (
    FINISHED,
    OutputFiles,
    log_epoch,
    newest_epoch,
    write_missing,
)
from quadriga.surfaces.model_assembling.sources import expanded
from quadriga.surfaces.model_assembling.to_config import (
    batch_of,
    config_tree,
    files_of,
    folder_of,
    notes_of,
    with_length,
)
from quadriga.weights.files import read_weights

FLAG_OF = {
    "train.batch_size": "--batch_size x --update_freq x processes",
    "train.accumulate": "--update_freq",
    "train.steps": "--epochs",
    "train.device": "--device",
    "train.precision": "--use_amp",
    "train.repeats": "--repeated-aug",
    "optim.lr": "--lr",
    "optim.eps": "--opt-eps",
    "optim.betas": "--opt-betas",
    "optim.momentum": "--momentum",
    "optim.weight_decay": "--weight-decay",
    "optim.clip_norm": "--clip-grad",
    "schedule.warmup_steps": "--warmup-epochs",
    "schedule.milestone_steps": "--decay-epochs",
    "schedule.gamma": "--decay-rate",
    "seed": "--seed",
    "data.root": "--data-path",
    "data.level": "--inat-category",
    "views.image_px": "--input-size",
    "views.augment": "--aa",
    "views.color_jitter": "--color-jitter",
    "views.erase_probability": "--reprob",
    "views.erase_count": "--recount",
    "views.mixup": "--mixup",
    "views.cutmix": "--cutmix",
    "views.cutmix_minmax": "--cutmix-minmax",
    "views.mix_probability": "--mixup-prob",
    "views.mix_switch_probability": "--mixup-switch-prob",
    "model.image_px": "--input-size",
    "model.patch_px": "the patches of --model",
    "model.depth": "the sum of --divided_depths",
    "model.drop_path": "--drop-path",
    "model.dropout": "--drop",
    "model.width": "the width of --model",
    "objective.smoothing": "--smoothing",
    "loader.workers": "--num_workers",
    "modular.depths": "--divided_depths",
    "modular.meta": "--meta_model",
    "modular.meta_depths": "--divided_depths",
    "modular.modules": "--incubation_models",
    "modular.initialise": "--initialise",
    "modular.imitation": "--imitation",
    "modular.live": "--idx",
    "warm_start.path": "--finetune",
    "warm_start.strict": "--override warm_start.strict",
    "--work-dir": "--output_dir",
}
"""Config key or ``quadriga`` option in a message -> flag of this command."""


@dataclass(frozen=True)
class Training:
    """A parsed command line."""

    flags: argparse.Namespace
    resolved: Resolved[RunConfig]
    notes: tuple[str, ...]
    files: OutputFiles
    """The files to write into ``--output_dir``."""


def in_flags(sentence: str) -> str:
    """Return a message of the engine with the flags of this command."""
    said = translate_message(sentence, FLAG_OF)
    return said.replace("change the model's config", "change --divided_depths or --model")


def read_arguments(arguments: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
    """Read the command line, without the files that it names.

    Raises:
        UserError: A flag is wrong, or contradicts the number of processes.
    """
    flags = read_flags(arguments)
    world_size = read_launch(environ).world_size
    if flags.world_size not in (None, 1, world_size):
        raise UserError(
            f"--world_size must be the number of processes that run ({world_size}), but is "
            f"{flags.world_size}; start them with torchrun --nproc_per_node and remove it"
        )
    flags.incubation_models = expanded(flags.incubation_models)
    modules, depths = len(flags.incubation_models), len(flags.divided_depths)
    if flags.phase == "FT" and modules != depths and not flags.eval:
        raise UserError(
            f"--incubation_models must be a file for each of the {depths} modules of "
            f"--divided_depths, but are {modules}; check the pattern"
        )
    return flags


def read_command(flags: argparse.Namespace, environ: Mapping[str, str]) -> Training:
    """Read the files that a command line names, and the number of samples.

    Raises:
        UserError: The command line or a file is invalid; raised on every rank alike.
    """
    ranks = read_launch(environ).world_size
    tree = config_tree(flags, ranks)
    words = read_overrides(flags.override)
    # Any length will do: only the data section is used.
    probe = RunConfig.from_dict(with_length(tree, flags, batch_of(flags, ranks), ranks))
    of_data = {key: value for key, value in words.items() if key.startswith("data.")}
    dataset = probe.override(of_data, COMMAND_LINE).data.build("train")
    tree = with_length(tree, flags, len(dataset), ranks)
    tree = _with_classes(tree, len(dataset.classes))
    resolved = Resolved.of(RunConfig.from_dict(tree), COMMAND_LINE)
    if words:
        resolved = resolved.override(complete(words, resolved.config), COMMAND_LINE)
    files = files_of(flags, len(dataset), ranks)
    return Training(flags, resolved, tuple(notes_of(flags, ranks)), files)


def _with_classes(tree: dict[str, Any], classes: int) -> dict[str, Any]:
    if classes < 2:
        raise UserError(f"--data-path must hold two classes or more, but has {classes}")
    return {**tree, "objective": {**tree["objective"], "classes": classes}}


def train(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Train, or evaluate; return the exit code.

    Raises:
        UserError: The command line, a file or the data is invalid.
    """
    try:
        flags = read_arguments(arguments, environ)
        if flags.eval:
            return evaluate(flags, environ)
        finished = _finished(flags)
        if finished is not None:
            if read_launch(environ).rank == 0:
                print(finished, flush=True)
            return 0
        command = read_command(flags, environ)
    except UserError as error:
        error.on_every_rank = True
        raise
    config, work_dir = command.resolved.config, folder_of(flags)
    with (
        Preemption() as preemption,
        process_group(config.train.device, join_minutes=config.health.join_minutes) as env,
        Console(env.is_main) as console,
    ):
        for note in command.notes:
            console.say(note)
        goes_on = from_main(lambda: _prepare(command, work_dir), env)
        files = command.files
        run(
            command.resolved,
            Request(work_dir, resume=goes_on),
            env,
            console,
            preemption,
            on_saved=files.on_saved,
            on_reported=functools.partial(log_epoch, files, RunDirectory(work_dir)),
        )
        from_main(lambda: _complete(files, work_dir), env)
        if env.is_main:
            console.say(f"report: {write_report(work_dir)}")
            console.say(f"finished: {flags.output_dir / FINISHED}")
    return 0


def _prepare(command: Training, work_dir: Path) -> bool:
    """Return whether the run has a checkpoint to resume from, and write what it lacks beside them.

    Raises:
        UserError: The folder cannot be written to, or holds another run, or files of epochs without
            a run.
    """
    flags = command.flags
    if list_checkpoints(RunDirectory(work_dir).checkpoints):
        RunDirectory(work_dir).check_owner(command.resolved.config)
        _complete(command.files, work_dir)
        return True
    epoch = newest_epoch(flags.output_dir)
    if epoch is not None:
        raise UserError(
            f"--output_dir {flags.output_dir} holds checkpoint-{epoch}.pth but no run that could "
            "go on from it (run/checkpoints); choose another folder, or start from its weights "
            "with --finetune"
        )
    return False


def _finished(flags: argparse.Namespace) -> str | None:
    """Return a message if the phase is finished; None if it is not.

    Raises:
        UserError: The folder holds another finished run.
    """
    path = flags.output_dir / FINISHED
    if not path.is_file():
        return None
    notes = read_weights(path).notes or {}
    asked = {"phase": flags.phase, "index": flags.idx, "epochs": flags.epochs}
    for name, value in asked.items():
        if name in notes and notes[name] != value:
            flag = {"index": "--idx", "epochs": "--epochs"}.get(name, "--phase")
            raise UserError(
                f"--output_dir {flags.output_dir} holds a finished run with {flag} {notes[name]}, "
                f"but {flag} is {value}; choose another folder"
            )
    return f"finished: {path} is there, nothing is left to do; --eval evaluates it"


def _complete(files: OutputFiles, work_dir: Path) -> None:
    """Write missing files of the newest checkpoint, after an interruption or a full disk.

    Raises:
        UserError: A file cannot be written, or the checkpoint is damaged.
    """
    try:
        write_missing(files, RunDirectory(work_dir).checkpoints)
    except (OSError, InvalidCheckpoint) as error:
        raise UserError(
            f"--output_dir {files.folder} cannot be written: {error}; make room and run the same "
            "command"
        ) from error


def main() -> None:
    """Run the command line."""
    run_command(lambda: train(sys.argv[1:], os.environ), in_flags)
