"""One run from its config to its last evaluation: everything the loop needs, put together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from quadriga.contracts import Dataset, LoggerContext, Objective
from quadriga.data.loader import Loader
from quadriga.distributed.collectives import from_main, on_all
from quadriga.distributed.environment import DistEnv
from quadriga.engine.activity import Activity
from quadriga.engine.arithmetic import RunPlan
from quadriga.engine.build import build_objective
from quadriga.engine.checkpoint import CheckpointStore, newest_valid, read_objective
from quadriga.engine.compilation import check_compile
from quadriga.engine.console import Console
from quadriga.engine.data_parallel import DataParallelExecutor
from quadriga.engine.evaluate import evaluate, make_context, missing_protocols
from quadriga.engine.events import Events
from quadriga.engine.health import BadStep, Health, LeftOut, RollBack, stop_at
from quadriga.engine.journal import Journal
from quadriga.engine.logger_set import LoggerSet
from quadriga.engine.precision import check_precision
from quadriga.engine.profiling import Profiler, check_profile
from quadriga.engine.replay import write_replay
from quadriga.engine.run_config import RunConfig, config_hash
from quadriga.engine.run_directory import RunDirectory
from quadriga.engine.start import Request, announce, check_start, choose, write_start
from quadriga.engine.throughput import Work, measure_work
from quadriga.engine.train import train
from quadriga.errors import UserError
from quadriga.provenance import Resolved


def run(resolved: Resolved[RunConfig], request: Request, env: DistEnv, console: Console) -> None:
    """Train, evaluate and write everything into the work directory; every rank calls it.

    Raises:
        UserError: Anything the user can mend; found before the first step where that is possible.
    """
    config = resolved.config
    directory = RunDirectory(request.work_dir)

    def check() -> tuple[Dataset, RunPlan]:
        check_precision(config.train, env.device)
        if config.train.compile:
            check_compile(env.device)
        return check_start(config, env.world_size)

    dataset, plan = on_all(check, env)
    with contextlib.ExitStack() as stack:

        def claim() -> Path | None:
            directory.check_owner(config)
            directory.create()
            stack.enter_context(directory.lock())
            with directory.writing():
                console.open_log(directory.path / "log.txt")
            return choose(request, directory, config, plan, console)

        start_from = from_main(claim, env)
        activity = Activity()
        objective = build_objective(config, env.device, config.seed)
        on_all(lambda: _check_protocols(config, objective, directory, env, console), env)
        left_out = on_all(lambda: LeftOut(directory.path / "left_out.json"), env)

        def record(bad: BadStep) -> str:
            return write_replay(directory.replay, resolved, plan, env, objective, bad)

        def tell(bad: BadStep, text: str) -> None:
            if env.is_main:
                console.warn(text)

        executor = DataParallelExecutor(
            objective,
            config,
            plan,
            env,
            activity=activity,
            on_bad_step=Health(config.health, left_out, record, tell),
            left_out=left_out,
        )
        own_hash = config_hash(config, plan.dataset_size)
        store = stack.enter_context(
            CheckpointStore(directory.checkpoints, env, config.checkpoint, own_hash, console.warn)
        )
        start = store.load(start_from, executor) if start_from is not None else 0
        judge = _judge(config, executor, directory, env, console)
        if start >= plan.total_steps:
            console.say(f"finished: {directory.path} already holds all {plan.total_steps} steps")
            judge(start)
            return
        on_all(lambda: check_profile(config.log, plan, start), env)
        from_main(lambda: write_start(resolved, directory, env, objective, start), env)
        announce(console, config, plan, objective, start, env)
        work = measure_work(config, env, console.say) if env.is_main else None
        while True:
            try:
                with (
                    _loader(config, dataset, plan, env, console) as loader,
                    _journal(config, directory, plan, env, console, start, work) as journal,
                    Profiler(config.log, directory, env, console, start) as profiler,
                ):
                    train(executor, loader, plan, start, journal, store, judge, profiler)
                break
            except RollBack as back:
                start = _go_back(back.bad, left_out, store, executor, directory, env, console)
        if loader.unreadable:
            console.warn(f"{loader.unreadable} of the samples could not be read and were replaced")


def _go_back(
    bad: BadStep,
    left_out: LeftOut,
    store: CheckpointStore,
    executor: DataParallelExecutor,
    directory: RunDirectory,
    env: DistEnv,
    console: Console,
) -> int:
    """Load the newest checkpoint before a bad step; return the step it is at.

    The first time the steps since then are made again: a fault of the hardware does not come
    back. A step that is bad again is a matter of the data or the weights: the updates from the
    checkpoint to it are left out.
    """
    found = from_main(lambda: newest_valid(directory.checkpoints, console.warn), env)
    if found is None:
        stop_at(bad, "; there is no checkpoint to go back to (checkpoint.every_steps)")
    start = store.load(found, executor)
    if bad.step in left_out.tried:
        left_out.ranges.append((start, bad.step))
        what = f"leaving out the updates of steps {start + 1} to {bad.step + 1}"
    else:
        left_out.tried.append(bad.step)
        what = "the steps since then are made again"

    def note() -> None:
        directory.rewind_metrics(start)
        with directory.writing():
            left_out.save()
            Events(directory.events).write(
                "rollback", bad.step + 1, back_to=start, what=bad.what, value=str(bad.value)
            )
        console.warn(f"{bad}: back to {found.name}, {what}")

    from_main(note, env)
    return start


def _check_protocols(
    config: RunConfig, objective: Objective, directory: RunDirectory, env: DistEnv, console: Console
) -> None:
    """Check that the run's protocols can judge it."""
    if config.evaluation.protocols:
        context = make_context(config, objective, directory.report, env, console)
        for protocol in config.evaluation.protocols:
            protocol.build().check(context)


def _judge(
    config: RunConfig,
    executor: DataParallelExecutor,
    directory: RunDirectory,
    env: DistEnv,
    console: Console,
) -> Callable[[int], Mapping[str, float]]:
    """Return what runs the protocols without a result yet, and returns their numbers."""

    def judge(step: int) -> Mapping[str, float]:
        missing = from_main(lambda: missing_protocols(config, directory.report, step), env)
        if not missing:
            return {}
        with executor.frozen(config.evaluation.weights) as objective:
            context = make_context(config, objective, directory.report, env, console)
            results = evaluate(missing, context, step, console)
        return {
            f"{result.protocol}.{name}": value
            for result in results
            for name, value in result.numbers.items()
        }

    return judge


def _journal(
    config: RunConfig,
    directory: RunDirectory,
    plan: RunPlan,
    env: DistEnv,
    console: Console,
    start: int,
    work: Work | None,
) -> Journal:
    loggers = LoggerSet(console.warn)
    context = LoggerContext(directory.path, config.name, config.as_dict(), start)
    from_main(lambda: loggers.open(config.log.loggers, context, console.say), env)
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


def load_objective(
    config: RunConfig, run_dir: Path, env: DistEnv, console: Console
) -> tuple[Objective, int]:
    """Return the objective of a run's newest valid checkpoint and the step it is at.

    Its weights are those that ``evaluation.weights`` names.

    Raises:
        UserError: The run has no whole checkpoint, or no moving average.
    """
    directory = RunDirectory(run_dir)
    found = from_main(lambda: newest_valid(directory.checkpoints, console.warn), env)
    if found is None:
        raise UserError(f"{run_dir} has no whole checkpoint to evaluate; train it first")
    objective = build_objective(config, env.device, config.seed)
    return objective, read_objective(found, objective, env, config.evaluation.weights)
