"""One run from its config to its last evaluation: everything the loop needs, put together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quadriga.contracts import Dataset, LoggerContext, Objective
from quadriga.data.loader import Loader
from quadriga.distributed.collectives import from_main, on_all
from quadriga.distributed.environment import DistEnv
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
from quadriga.engine.journal import Journal
from quadriga.engine.logger_set import LoggerSet, check_loggers
from quadriga.engine.precision import precision_of
from quadriga.engine.profiling import Profiler, check_profile
from quadriga.engine.run_config import RunConfig, config_hash
from quadriga.engine.run_directory import RunDirectory
from quadriga.engine.throughput import measure_work
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


def run(resolved: Resolved[RunConfig], request: Request, env: DistEnv, console: Console) -> None:
    """Train, evaluate and write everything into the work directory; every rank calls it.

    Raises:
        UserError: Anything the user can mend; found before the first step where that is possible.
    """
    config = resolved.config
    directory = RunDirectory(request.work_dir)
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
        executor = DataParallelExecutor(
            objective, config.optim, config.schedule, plan, env, config.seed, precision_of(config)
        )
        own_hash = config_hash(config, plan.dataset_size)
        store = CheckpointStore(directory.checkpoints, env, config.checkpoint.keep, own_hash)
        start = store.load(start_from, executor) if start_from is not None else 0
        if start >= plan.total_steps:
            console.say(f"finished: {directory.path} already holds all {plan.total_steps} steps")
            judge(start)
            return
        on_all(lambda: check_profile(config.log, plan, start), env)
        from_main(lambda: _write_start(resolved, directory, env, objective, start), env)
        _announce(console, config, plan, objective, start)
        loader = stack.enter_context(_loader(config, dataset, plan, env, console))
        journal = stack.enter_context(_journal(config, directory, plan, env, console, start))
        profiler = stack.enter_context(Profiler(config.log, directory, env, console, start))
        train(executor, loader, plan, start, journal, store, judge, profiler)
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
    check_loggers(config.log.loggers)
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


def _journal(
    config: RunConfig,
    directory: RunDirectory,
    plan: RunPlan,
    env: DistEnv,
    console: Console,
    start: int,
) -> Journal:
    loggers = LoggerSet(console.warn)
    context = LoggerContext(directory.path, config.name, config.as_dict(), start)
    from_main(lambda: loggers.open(config.log.loggers, context, console.say), env)
    work = measure_work(config, env, console.say) if env.is_main else None
    return Journal(directory, config.log, plan, env, console, start, work, loggers, config.health)


def _loader(
    config: RunConfig, dataset: Dataset, plan: RunPlan, env: DistEnv, console: Console
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
