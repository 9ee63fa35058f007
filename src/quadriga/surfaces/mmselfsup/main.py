"""``tools/train.py``: the documented command of mmselfsup for pre-training."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import DistEnv, read_launch
from quadriga.distributed.process_group import process_group
from quadriga.engine.checkpoint.store import InvalidCheckpoint, list_checkpoints
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.resume import Request
from quadriga.engine.session import run
from quadriga.errors import UserError
from quadriga.report.run import write_report
from quadriga.surfaces.command import run_command, translate_message
from quadriga.surfaces.mmselfsup.arguments import read_arguments
from quadriga.surfaces.mmselfsup.output_files import LAST, RUN, OutputFiles
from quadriga.surfaces.mmselfsup.processes import set_port, set_up
from quadriga.surfaces.mmselfsup.read import Given, read_given, read_run
from quadriga.weights.files import read_weights

_DATASET = "train_dataloader.dataset"

FLAG_OF = {
    "train.batch_size": "train_dataloader.batch_size x processes",
    "train.accumulate": "optim_wrapper.accumulative_counts",
    "train.steps": "train_cfg.max_epochs",
    "train.precision": "optim_wrapper.type",
    "optim.lr": "optim_wrapper.optimizer.lr",
    "optim.eps": "optim_wrapper.optimizer.eps",
    "optim.betas": "optim_wrapper.optimizer.betas",
    "optim.momentum": "optim_wrapper.optimizer.momentum",
    "optim.trust_coefficient": "optim_wrapper.optimizer.eta",
    "optim.weight_decay": "optim_wrapper.optimizer.weight_decay",
    "optim.clip_norm": "optim_wrapper.clip_grad.max_norm",
    "ema.decay": "custom_hooks EMAHook.momentum",
    "seed": "randomness.seed",
    "data.root": f"{_DATASET}.data_root",
    "data.files": f"{_DATASET}.ann_file",
    "views.image_px": f"{_DATASET}.pipeline.1.size",
    "views.crop_scale": f"{_DATASET}.pipeline.1.scale",
    "views.crop_ratio": f"{_DATASET}.pipeline.1.ratio",
    "views.flip_probability": f"{_DATASET}.pipeline.2.prob",
    "views.mean": "model.data_preprocessor.mean",
    "views.std": "model.data_preprocessor.std",
    "model.image_px": "model.backbone.img_size",
    "model.patch_px": "model.backbone.patch_size",
    "model.width": "model.backbone.arch.embed_dims",
    "model.depth": "model.backbone.arch.num_layers",
    "model.heads": "model.backbone.arch.num_heads",
    "model.drop_path": "model.backbone.drop_path_rate",
    "objective.mask_ratio": "model.backbone.mask_ratio",
    "objective.decoder_width": "model.neck.decoder_embed_dim",
    "objective.decoder_depth": "model.neck.decoder_depth",
    "objective.decoder_heads": "model.neck.decoder_num_heads",
    "objective.temperature": "model.head.temperature",
    "objective.momentum": "model.base_momentum",
    "objective.queue": "model.queue_len",
    "objective.prototypes": "model.head.loss.num_prototypes",
    "objective.epsilon": "model.head.loss.epsilon",
    "objective.sinkhorn_iterations": "model.head.loss.sinkhorn_iterations",
    "objective.redundancy_weight": "model.head.loss.lambda_",
    "objective.hidden_width": "model.neck.hid_channels",
    "objective.output_width": "model.neck.out_channels",
    "objective.statistics_group": "model.backbone.norm_cfg",
    "model.stem_width": "model.backbone.base_channels",
    "loader.workers": "train_dataloader.num_workers",
    "log.every_steps": "default_hooks.logger.interval",
    "warm_start.path": "load_from",
    "--work-dir": "--work-dir",
}
"""Config key or ``quadriga`` option in a message -> key of a config of mmselfsup."""


def in_keys(sentence: str) -> str:
    """Return a message of the engine with the keys of a config."""
    said = sentence.replace("add --resume to continue it or", "add --resume to go on with it or")
    return translate_message(said, FLAG_OF)


def train(arguments: Sequence[str], environ: MutableMapping[str, str]) -> int:
    """Train by a command line; return the exit code.

    Raises:
        UserError: The command line, the config or the data is invalid.
    """
    try:
        flags = read_arguments(arguments)
        if "LOCAL_RANK" not in environ and flags.local_rank:
            environ["LOCAL_RANK"] = str(flags.local_rank)
        given = read_given(flags)
        set_up(given.config["launcher"], environ)
        set_port(given.config, environ)
        launch = read_launch(environ)
    except UserError as error:
        error.on_every_rank = True
        raise
    meeting = (given.config.get("env_cfg") or {}).get("dist_cfg") or {}
    with (
        Preemption() as preemption,
        process_group(
            environ=environ,
            timeout_minutes=(meeting.get("timeout") or 1800) / 60,
            backend=meeting.get("backend"),
        ) as env,
        Console(env.is_main) as console,
    ):
        _train(given, launch.world_size, env, console, preemption)
    return 0


def _train(
    given: Given, ranks: int, env: DistEnv, console: Console, preemption: Preemption
) -> None:
    try:
        training = read_run(given, ranks, env.device.type == "cpu")
    except UserError as error:
        error.on_every_rank = True
        raise
    for note in training.notes:
        console.say(note)
    files = training.files
    request = from_main(lambda: _prepare(given, files), env)
    started = from_main(lambda: time.strftime("%Y%m%d_%H%M%S"), env)
    folder = files.folder / started
    logger = {
        "kind": "mmengine",
        "folder": str(folder),
        "epoch_steps": files.epoch_steps if files.by_epoch else None,
        "total_steps": files.total_steps,
        "accumulate": files.accumulate,
        "text": files.text,
    }
    loggers = [kind.as_dict() for kind in training.resolved.config.log.loggers]
    run(
        training.resolved.override({"log.loggers": [*loggers, logger]}, str(given.file)),
        request,
        env,
        console,
        preemption,
        on_saved=files.on_saved,
    )
    from_main(lambda: _complete(files), env)
    if env.is_main:
        console.say(f"report: {write_report(files.folder / RUN)}")
        console.say(f"finished: {(files.folder / LAST).read_text(encoding='utf-8')}")


def _prepare(given: Given, files: OutputFiles) -> Request:
    """Make the work directory, and find what to go on from.

    Raises:
        UserError: The directory cannot be written, or holds no run to go on with.
    """
    work_dir, config = given.work_dir, given.config
    run_dir = work_dir / RUN
    request = Request(run_dir, resume=bool(config.get("resume")))
    asked = config.get("load_from") if config.get("resume") else None
    if asked:
        request = Request(run_dir, resume=True, resume_from=_checkpoint_of(Path(str(asked))))
    elif (work_dir / LAST).exists() and not list_checkpoints(run_dir / "checkpoints"):
        raise UserError(
            f"work dir {work_dir} holds checkpoints, but no run of this engine to go on with; "
            "start from the weights of one with --cfg-options load_from=FILE in another --work-dir"
        )
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--work-dir {work_dir} cannot be written: {error.strerror}") from error
    return request


def _checkpoint_of(path: Path) -> Path:
    """Return the engine's checkpoint that a file was written from.

    Raises:
        UserError: It is gone, or there was none.
    """
    if path.is_dir():
        return path / RUN if (path / RUN).is_dir() else path
    step = (read_weights(path).notes or {}).get("step")
    run_dir = RunDirectory(path.absolute().parent / RUN)
    if step is None:
        raise UserError(
            f"--resume {path} is of another system, whose optimizer and schedule are not read; "
            f"start from its weights with --cfg-options resume=False load_from={path}"
        )
    found = [c for c in list_checkpoints(run_dir.checkpoints) if c.name.endswith(f"_{step:08d}")]
    if not found:
        raise UserError(
            f"--resume {path} needs step {step} of {run_dir.path}, but it is not there any more; "
            f"start from its weights with --cfg-options resume=False load_from={path}"
        )
    return found[0]


def _complete(files: OutputFiles) -> None:
    """Write a missing file of the last checkpoint, after an interruption or a full disk.

    Raises:
        UserError: It cannot be written, or the checkpoint is damaged.
    """
    try:
        files.complete(files.folder / RUN / "checkpoints")
    except (OSError, InvalidCheckpoint) as error:
        raise UserError(f"the last checkpoint of {files.folder} cannot be written: {error}") from (
            error
        )


def main() -> None:
    """Run the command line."""
    run_command(lambda: train(sys.argv[1:], os.environ), in_keys)
