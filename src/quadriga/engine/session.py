"""One run from its config to its last evaluation: everything the loop needs, put together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quadriga.contracts import Dataset, Objective
from quadriga.data.loader import Loader, OnRead
from quadriga.distributed.collectives import all_gather_values, from_main, on_all
from quadriga.distributed.environment import DistEnv
from quadriga.engine.activity import Activity
from quadriga.engine.arithmetic import RunPlan, describe_batch, make_plan
from quadriga.engine.build import build_objective, check_shapes
from quadriga.engine.checkpoint import (
    CheckpointStore,
    InvalidCheckpoint,
    list_checkpoints,
    newest_valid,
    read_manifest,
    set_aside_after,
    verify,
)
from quadriga.engine.console import Console
from quadriga.engine.data_parallel import DataParallelExecutor
from quadriga.engine.evaluate import evaluate, make_context, missing_protocols
from quadriga.engine.facts import environment_facts
from quadriga.engine.hang import HangDetector, whereabouts
from quadriga.engine.journal import Journal
from quadriga.engine.precision import precision_of
from quadriga.engine.preemption import Preemption
from quadriga.engine.run_config import RunConfig, config_hash
from quadriga.engine.run_directory import RunDirectory
from quadriga.engine.sample_log import SampleLog, rewind_samples
from quadriga.engine.train import train
from quadriga.engine.units import count
from quadriga.errors import UserError
from quadriga.optim.schedules.warmup import warmup_length
from quadriga.provenance import Resolved


@dataclass(frozen=True)
class Request:
    """What the user asked for beside the config."""

    work_dir: Path
    resume: bool = False
    """Whether to go on with what the work directory holds, if anything."""
    resume_from: Path | None = None
    """A checkpoint to start from instead of the newest of the work directory."""


def run(
    resolved: Resolved[RunConfig],
    request: Request,
    env: DistEnv,
    console: Console,
    preemption: Preemption | None = None,
) -> None:
    """Train, evaluate and write everything into the work directory; every rank calls it.

    Raises:
        UserError: Anything the user can mend; found before the first step where that is possible.
        Preempted: A signal asked the run to stop; it has saved.
    """
    preemption = preemption or Preemption()
    config = resolved.config
    directory, activity = RunDirectory(request.work_dir), Activity()
    dataset, plan = on_all(lambda: check_start(config, env.world_size), env)
    with contextlib.ExitStack() as stack:

        def claim() -> Path | None:
            directory.check_owner(config)
            directory.create()
            stack.enter_context(directory.lock())
            with directory.writing():
                console.open_log(directory.path / "log.txt")
            return _choose(request, directory, config, plan, console)

        start_from = from_main(claim, env)
        objective = build_objective(config, env.device, config.seed)
        judge = on_all(lambda: _judge(config, objective, directory, env, console), env)
        extras = (precision_of(config), activity, lambda: preemption.asked)
        executor = DataParallelExecutor(
            objective, config.optim, config.schedule, plan, env, config.seed, *extras
        )
        own_hash = config_hash(config, plan.dataset_size)
        store = CheckpointStore(directory.checkpoints, env, config.checkpoint.keep, own_hash)
        start = store.load(start_from, executor) if start_from is not None else 0
        if start >= plan.total_steps:
            console.say(f"finished: {directory.path} already holds all {plan.total_steps} steps")
            with preemption.leave_at_once(start):
                judge(start)
            return
        from_main(lambda: _write_start(resolved, directory, env, objective, start), env)
        _announce(console, config, plan, objective, start)
        on_read = _sample_log(config, directory, env, stack)
        loader = stack.enter_context(_loader(config, dataset, plan, env, console, on_read))
        journal = stack.enter_context(Journal(directory, config.log, plan, env, console, start))
        members = all_gather_values(whereabouts(), env)
        folder = directory.path / "hang"
        stack.enter_context(HangDetector(activity, config.health, env, folder, members))
        train(executor, loader, plan, start, journal, store, judge, preemption, activity)
        if loader.unreadable:
            console.warn(f"{loader.unreadable} of the samples could not be read and were replaced")


def check_start(config: RunConfig, world_size: int) -> tuple[Dataset, RunPlan]:
    """Try everything that needs no memory, no process and no work directory.

    Args:
        config: The run.
        world_size: Ranks it is to run on.

    Returns:
        The training data and the run's numbers.

    Raises:
        UserError: The run cannot start.
    """
    dataset = config.data.build("train")
    check_shapes(config)
    return dataset, make_plan(config, len(dataset), world_size)


def _judge(
    config: RunConfig, objective: Objective, directory: RunDirectory, env: DistEnv, console: Console
) -> Callable[[int], None]:
    """Check that the run's protocols can judge it; return what runs those without a result yet."""
    if config.evaluation.protocols:
        context = make_context(config, objective, directory.report, env, console)
        for protocol in config.evaluation.protocols:
            protocol.build().check(context)

    def judge(step: int) -> None:
        missing = from_main(lambda: missing_protocols(config, directory.report, step), env)
        if missing:
            context = make_context(config, objective, directory.report, env, console)
            evaluate(missing, context, step, console)

    return judge


def _sample_log(
    config: RunConfig, directory: RunDirectory, env: DistEnv, stack: contextlib.ExitStack
) -> OnRead | None:
    if not config.log.samples:
        return None
    with directory.writing():
        log = SampleLog(directory.path / "samples", env.rank)
    stack.callback(log.close)
    return log.add


def _loader(
    config: RunConfig,
    dataset: Dataset,
    plan: RunPlan,
    env: DistEnv,
    console: Console,
    on_read: OnRead | None = None,
) -> Loader:
    return Loader(
        dataset,
        config.views.build("train"),
        seed=config.seed,
        batch_size=plan.batch_size,
        accumulate=plan.accumulate,
        env=env,
        workers=config.loader.workers,
        prefetch=config.loader.prefetch,
        max_unreadable_fraction=config.loader.max_unreadable_fraction,
        warn=console.warn,
        on_read=on_read,
    )


def _choose(
    request: Request, directory: RunDirectory, config: RunConfig, plan: RunPlan, console: Console
) -> Path | None:
    """Return the checkpoint to start from, None to start at step 0."""
    if request.resume_from is not None:
        chosen = _chosen(request.resume_from, config, plan, console)
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
    elif read_manifest(found).config_hash != config_hash(config, plan.dataset_size):
        raise UserError(
            f"work dir {directory.path} was trained on another number of samples than "
            f"{plan.dataset_size}: the data in data.root has changed; restore it or choose another "
            "--work-dir"
        )
    elif not request.resume and read_manifest(found).step < plan.total_steps:
        raise UserError(
            f"work dir {directory.path} already holds this run, up to {found.name} of "
            f"{plan.total_steps} steps; add --resume to continue it or choose another --work-dir"
        )
    return found


def _chosen(path: Path, config: RunConfig, plan: RunPlan, console: Console) -> Path:
    """Check the checkpoint that the user named: a checkpoint folder, or a run's folder."""
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
    if manifest.config_hash != config_hash(config, plan.dataset_size):
        raise UserError(
            f"checkpoint {folder} is of a run with another config, or with another number of "
            f"samples than {plan.dataset_size}; resume it with the config it was made with "
            "(config.json in its run)"
        )
    return folder


def _write_start(
    resolved: Resolved[RunConfig],
    directory: RunDirectory,
    env: DistEnv,
    objective: Objective,
    start: int,
) -> None:
    directory.write_config(resolved)
    parameters = sum(p.numel() for p in objective.parameters())
    directory.write_environment({**environment_facts(env), "parameters": parameters})
    directory.rewind_metrics(start)
    with directory.writing():
        rewind_samples(directory.path / "samples", start)


def _announce(
    console: Console, config: RunConfig, plan: RunPlan, objective: Objective, start: int
) -> None:
    parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    epochs = plan.total_steps * plan.batch_size / plan.dataset_size
    console.say(
        f"{config.name}: {config.objective.kind()} of {config.model.kind()}, "
        f"{count(parameters)} parameters, {plan.dataset_size} samples, "
        f"{plan.total_steps} steps = {epochs:.4g} epochs"
    )
    console.say(describe_batch(plan, config.optim))
    warmup = warmup_length(config.schedule, plan.progress(0))
    if warmup >= plan.total_steps:
        console.warn(
            f"the warm-up of {warmup} steps is not over within the run's {plan.total_steps}: the "
            "learning rate never falls; shorten schedule.warmup_epochs or schedule.warmup_steps"
        )
    if start:
        console.say(f"resumed after step {start} of {plan.total_steps}")


def load_objective(
    config: RunConfig, run_dir: Path, env: DistEnv, console: Console
) -> tuple[Objective, int]:
    """Return the objective of a run's newest valid checkpoint and the step it is at.

    Raises:
        UserError: The run has no whole checkpoint.
    """
    directory = RunDirectory(run_dir)
    found = from_main(lambda: newest_valid(directory.checkpoints, console.warn), env)
    if found is None:
        raise UserError(f"{run_dir} has no whole checkpoint to evaluate; train it first")
    objective = build_objective(config, env.device, config.seed)
    step = CheckpointStore(directory.checkpoints, env, 1, "").load_objective(found, objective)
    return objective, step
