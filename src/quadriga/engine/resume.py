"""Choice of the checkpoint that a run resumes from, and the messages at its start."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from quadriga.config.provenance import Resolved
from quadriga.contracts import Dataset, Objective
from quadriga.distributed.environment import DistEnv
from quadriga.engine.checkpoint.store import (
    InvalidCheckpoint,
    list_checkpoints,
    newest_valid,
    read_manifest,
    set_aside_after,
    verify,
)
from quadriga.engine.initial_weights import check_initial_weights, weights_of
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.environment import describe_environment
from quadriga.engine.logs.results import classes_of, data_facts, forget_results_after
from quadriga.engine.logs.samples import rewind_samples
from quadriga.engine.run_config import RunConfig, config_hash, first_difference, identity
from quadriga.engine.run_plan import RunPlan, describe_batch
from quadriga.errors import UserError
from quadriga.formatting import count
from quadriga.schedules.curves import warmup_length


@dataclass(frozen=True)
class Request:
    """The user's options in addition to the config."""

    work_dir: Path
    resume: bool = False
    """Whether to continue the run in the work directory, if there is one."""
    resume_from: Path | None = None
    """A checkpoint to start from instead of the newest of the work directory."""
    is_checked: bool = False
    """Whether the launcher has tried the model on the views' shapes, which takes half a second."""


def begun_with(request: Request) -> RunConfig | None:
    """Return the config with which the run to be continued began; None if there is none to read.

    What is wrong with it is said by the checks of the work directory and of the checkpoint.
    """
    folder = request.work_dir
    if request.resume_from is not None:
        is_run = (request.resume_from / "checkpoints").is_dir()
        above = request.resume_from.absolute().parent.parent
        folder = request.resume_from if is_run else above
    with contextlib.suppress(UserError):
        return RunDirectory(folder).read_config().config
    return None


def choose(
    request: Request, directory: RunDirectory, config: RunConfig, plan: RunPlan, console: Console
) -> Path | None:
    """Return the checkpoint to start from; None to start at step 0.

    Raises:
        UserError: The checkpoint cannot be used, the data has changed, or the work directory
            holds an unfinished run and ``resume`` is not set.
    """
    if request.resume_from is not None:
        chosen = _chosen(request.resume_from, config, plan, console)
        _tell_of_dropout(chosen, config, plan, console)
        set_aside_after(directory.checkpoints, read_manifest(chosen).step)
        return chosen
    found = newest_valid(directory.checkpoints, console.warn)
    if found is None:
        if list_checkpoints(directory.checkpoints):
            raise UserError(
                f"no checkpoint in {directory.checkpoints} is whole (see the warnings above); "
                "move the folder away to start anew"
            )
        if request.resume:
            console.say(f"nothing to resume in {directory.path}: starting at step 0")
        check_initial_weights(config)
    elif read_manifest(found).config_hash != config_hash(
        config, plan.dataset_size, plan.data_identity
    ):
        raise UserError(
            f"work dir {directory.path} was trained on another number of samples than "
            f"{plan.dataset_size}, with another vocabulary, or by an earlier revision that held "
            "other images out for testing; restore the data or choose another --work-dir"
        )
    elif not request.resume and read_manifest(found).step < plan.total_steps:
        raise UserError(
            f"work dir {directory.path} already holds this run, up to {found.name} of "
            f"{plan.total_steps} steps; add --resume to continue it or choose another --work-dir"
        )
    else:
        _tell_of_dropout(found, config, plan, console)
    return found


def _tell_of_dropout(checkpoint: Path, config: RunConfig, plan: RunPlan, console: Console) -> None:
    """Warn if dropout will be drawn otherwise than before the checkpoint.

    All other draws belong to a sample. Dropout belongs to a micro-batch of a rank.
    """
    there = RunDirectory(checkpoint.absolute().parent.parent)
    manifest = read_manifest(checkpoint)
    drops = any(
        path.endswith("dropout") and isinstance(value, float) and value > 0
        for path, value in config.leaves()
    )
    if not drops or manifest.step >= plan.total_steps or not there.config.is_file():
        return
    accumulate = there.read_config().config.train.accumulate
    # A pipeline's ranks are not its readers of samples.
    as_many = config.executor.is_cut or manifest.world_size == plan.world_size
    if accumulate != config.train.accumulate or not as_many:
        console.warn(
            f"dropout is drawn for each micro-batch: after step {manifest.step} other features are "
            f"dropped than with train.accumulate={accumulate} on {manifest.world_size} ranks, as "
            "before; all else stays the same"
        )


def _chosen(path: Path, config: RunConfig, plan: RunPlan, console: Console) -> Path:
    """Return the verified checkpoint at a path that the user gave: a checkpoint or a run."""
    if weights_of(path).is_file():
        raise UserError(
            f"{path} holds weights only, no optimizer and no step to resume from; start a new run "
            f"from them with warm_start.path={path}, or name a run or a checkpoint"
        )
    folder = path
    if (path / "checkpoints").is_dir():
        folder = newest_valid(path / "checkpoints", console.warn) or path
    try:
        manifest = verify(folder)
    except InvalidCheckpoint as error:
        raise UserError(
            f"checkpoint {folder} cannot be resumed: {error}; name a folder such as "
            "RUN/checkpoints/step_00001000"
        ) from error
    if manifest.config_hash != config_hash(config, plan.dataset_size, plan.data_identity):
        raise UserError(
            f"checkpoint {folder} is of another run: {_difference(folder, config, plan)}; resume "
            "it with the config it was made with (config.json in its run)"
        )
    return folder


def check_same_classes(checkpoint: Path, config: RunConfig, dataset: Dataset) -> None:
    """Check that the training data has the classes that a checkpoint was trained on, in order.

    Raises:
        UserError: It has others: a label would mean another class.
    """
    now = classes_of(dataset)
    before = read_manifest(checkpoint).extra.get("classes", now)
    if before != now:
        gone = [name for name in before if name not in now]
        new = [name for name in now if name not in before]
        what = f"gone: {', '.join(gone[:5]) or 'none'}; new: {', '.join(new[:5]) or 'none'}"
        raise UserError(
            f"the classes of data.kind={config.data.kind()} must be those that {checkpoint} was "
            f"trained on, but they have changed ({what}); restore the names of their folders, or "
            "choose another --work-dir"
        )


def _difference(folder: Path, config: RunConfig, plan: RunPlan) -> str:
    """Return how the run of a checkpoint differs from this one."""
    there = RunDirectory(folder.absolute().parent.parent)
    of_data = (
        f"its data has another number of samples than {plan.dataset_size}, or another vocabulary"
    )
    if not there.config.is_file():
        return f"its config differs, or {of_data}"
    return first_difference(identity(there.read_config().config), identity(config)) or of_data


def write_start(
    resolved: Resolved[RunConfig],
    directory: RunDirectory,
    env: DistEnv,
    objective: Objective,
    dataset: Dataset,
    start: int,
) -> None:
    """Write config.json and environment.json, and drop logs of steps that will be repeated."""
    directory.write_config(resolved)
    directory.keep_files(resolved.config)
    directory.write_data(data_facts(resolved.config, {"train": dataset}))
    parameters = sum(p.numel() for p in objective.parameters())
    directory.write_environment({**describe_environment(env), "parameters": parameters})
    directory.rewind_metrics(start)
    with directory.writing():
        rewind_samples(directory.samples, start)
        forget_results_after(directory.report, start)


def announce(
    console: Console,
    config: RunConfig,
    plan: RunPlan,
    objective: Objective,
    start: int,
    env: DistEnv,
    dataset: Dataset | None = None,
) -> None:
    """Say what the run is, and what its training data consists of."""
    parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    epochs = plan.total_steps * plan.batch_size / plan.dataset_size
    console.say(
        f"{config.name}: {config.objective.kind()} of {config.model.kind()}, "
        f"{count(parameters)} parameters, {plan.dataset_size} samples, "
        f"{plan.total_steps} steps = {epochs:.4g} epochs"
    )
    if dataset is not None and dataset.description:
        console.say(f"train data: {dataset.description}")
    console.say(describe_batch(plan, config.optim, config.executor.readers))
    layout = config.executor.describe(config, objective, env)
    if layout is not None:
        console.say(layout)
    warmup = warmup_length(config.schedule, plan.progress(0))
    if warmup >= plan.total_steps and env.is_main:
        console.warn(
            f"the warm-up of {warmup} steps is not over within the run's {plan.total_steps}: the "
            "learning rate never falls; shorten schedule.warmup_epochs or schedule.warmup_steps"
        )
    if start:
        console.say(f"resumed after step {start} of {plan.total_steps}")
