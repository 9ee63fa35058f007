"""One run from its config to its last evaluation: builds what the loop needs and runs it."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

from quadriga.config.provenance import Resolved
from quadriga.contracts import Dataset, EvaluationContext, LoggerContext, Objective
from quadriga.data.reading.loader import Loader, OnRead
from quadriga.distributed.allocator import is_out_of_memory
from quadriga.distributed.collectives import all_gather_values, from_main, local_part, on_all
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.mesh import Ranks
from quadriga.engine.build import build_loader, build_on_meta
from quadriga.engine.checkpoint.store import CheckpointStore, OnReported, OnSaved
from quadriga.engine.evaluate import evaluate, evaluation_data, make_context
from quadriga.engine.faults.hang import HangDetector, host_and_pid
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.faults.recovery import Recovery
from quadriga.engine.initial_weights import fill_from_sources
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.journal import Journal, log_evaluation
from quadriga.engine.logs.profile import Profiler
from quadriga.engine.logs.results import classes_of, metrics_at, missing_protocols
from quadriga.engine.logs.samples import SampleLog
from quadriga.engine.loop import train
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.engine.meters.throughput import Work, measure_work
from quadriga.engine.preflight import check_start
from quadriga.engine.resume import (
    Request,
    announce,
    begun_with,
    check_same_classes,
    choose,
    write_start,
)
from quadriga.engine.run_config import RunConfig, config_hash
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.bad_step import RollBack
from quadriga.engine.step.blocks import check_compile
from quadriga.engine.step.precision import AUTO, check_precision, decided
from quadriga.errors import UserError
from quadriga.formatting import bytes_
from quadriga.loggers import LoggerSet


def run(
    resolved: Resolved[RunConfig],
    request: Request,
    env: DistEnv,
    console: Console,
    preemption: Preemption | None = None,
    on_saved: OnSaved | None = None,
    on_reported: OnReported | None = None,
) -> None:
    """Train, evaluate and write everything into the work directory; every rank calls it.

    Args:
        resolved: The run.
        request: The user's options in addition to the config.
        env: This process among the run's.
        console: Prints the run's messages.
        preemption: Installed here, when all ranks have met; None for the signals' default action.
        on_saved: Writes the sidecar files of a checkpoint; see `CheckpointStore`.
        on_reported: Stores the metrics of a saved state; see `CheckpointStore`.

    Raises:
        UserError: Anything the user can fix; raised before the first step where possible.
        Preempted: A signal stopped the run; it has saved.
    """
    if preemption is not None:
        preemption.install()
    config = (resolved := _with_precisions(resolved, request, env)).config
    directory = RunDirectory(request.work_dir)
    dataset, plan = on_all(lambda: _check(config, env, request.is_checked), env)
    with contextlib.ExitStack() as stack:

        def claim() -> Path | None:
            directory.check_owner(config)
            before = directory.existing()
            directory.create()
            stack.enter_context(directory.lock())
            stack.enter_context(directory.undone_without_results(before))
            with directory.writing():
                console.open_log(directory.path / "log.txt")
                found = choose(request, directory, config, plan, console)
                if found is not None:
                    check_same_classes(found, config, dataset)
                return found

        start_from = from_main(claim, env)
        session = _Session(
            resolved, directory, dataset, plan, env, console, preemption or Preemption(), stack
        )
        if on_saved is None and from_main(directory.read_sidecars, env) is not None:
            console.warn(
                f"{directory.path}: the files beside its checkpoints (sidecars.json) are not "
                "written by this command; go on with the one that began the run to have them"
            )
        session.on_saved, session.on_reported = on_saved, on_reported
        try:
            session.run(start_from)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise session.out_of_memory() from error


def _with_precisions(
    resolved: Resolved[RunConfig], request: Request, env: DistEnv
) -> Resolved[RunConfig]:
    """Decide the precisions that are auto: the processor of rank 0 speaks for all."""
    config = resolved.config
    values = from_main(lambda: decided(config, env.device.type, begun_with(request)), env)
    return resolved.override(values, AUTO)


def _check(config: RunConfig, env: DistEnv, is_checked: bool) -> tuple[Dataset, RunPlan]:
    check_precision(config.train, env.device)
    if config.train.compile:
        check_compile(env.device)
    return check_start(config, env.world_size, try_shapes=not is_checked)


@final
class _Session:
    """A run that has locked its work directory."""

    def __init__(
        self,
        resolved: Resolved[RunConfig],
        directory: RunDirectory,
        dataset: Dataset,
        plan: RunPlan,
        env: DistEnv,
        console: Console,
        preemption: Preemption,
        stack: contextlib.ExitStack,
    ) -> None:
        self._resolved, self._config = resolved, resolved.config
        self._directory, self._dataset, self._plan = directory, dataset, plan
        self._data = evaluation_data(resolved.config, dataset, console.say)
        self._env, self._console, self._preemption = env, console, preemption
        self._stack, self._phase_timer = stack, PhaseTimer()
        self._ranks: Ranks | None = None
        self._kept: dict[str, Any] = {}
        self.on_saved: OnSaved | None = None
        self.on_reported: OnReported | None = None

    def run(self, start_from: Path | None) -> None:
        """Build everything, then train from a checkpoint or from step 0."""
        config, env, plan = self._config, self._env, self._plan
        self._objective = build_on_meta(config)  # the executor allocates each rank's part
        on_all(self._check_protocols, env)
        is_filled = config.warm_start.path is not None or config.modular is not None
        is_filled = is_filled or bool(config.objective.frozen_sources())
        self._recovery = Recovery(
            self._resolved,
            self._directory,
            plan,
            env,
            self._console,
            None if config.executor.is_cut else self._objective,
        )
        self._executor = config.executor.build(
            self._objective,
            config,
            plan,
            env,
            fill=self._fill if start_from is None and is_filled else None,
            phase_timer=self._phase_timer,
            asked_to_stop=lambda: self._preemption.asked,
            asked_to_save=self._asked_to_save,
            on_bad_step=self._recovery.health,
            skipped_steps=self._recovery.skipped_steps,
        )
        self._ranks = self._executor.ranks
        self._stack.callback(self._executor.close)
        self._store = self._open_store()
        start = 0 if start_from is None else self._store.load(start_from, self._executor)
        if start >= plan.total_steps:
            self._console.say(
                f"finished: {self._directory.path} already holds all {plan.total_steps} steps"
            )
            self._make_up(start)
            if env.is_main:
                self._log_late(start)
            return
        # Of a step that is evaluated already, nothing is missing.
        owed = plan.is_evaluated(start) if start else config.evaluation.at_start
        from_main(
            lambda: write_start(
                self._resolved, self._directory, env, self._objective, self._dataset, start
            ),
            env,
        )
        announce(self._console, config, plan, self._objective, start, env, self._dataset)
        members = all_gather_values(host_and_pid(), env)
        timer, hangs = self._phase_timer, self._directory.path / "hang"
        self._stack.enter_context(HangDetector(timer, config.health, env, hangs, members))
        if owed:
            self._make_up(start)
        self._train(start, owed)

    def _open_store(self) -> CheckpointStore:
        plan, classes = self._plan, classes_of(self._dataset)
        return self._stack.enter_context(
            CheckpointStore(
                self._directory.checkpoints,
                self._env,
                self._config.checkpoint,
                config_hash(self._config, plan.dataset_size, plan.data_identity),
                self._console.warn,
                on_saved=self.on_saved,
                on_reported=self.on_reported,
                extra={"classes": classes} if classes else {},
            )
        )

    def out_of_memory(self) -> UserError:
        """Return the error for an exhausted memory, with the size of the run's state."""
        train, env = self._config.train, self._env
        tensors = [local_part(p) for p in self._objective.parameters()]
        held = sum(t.numel() * t.element_size() * (4 if t.requires_grad else 1) for t in tensors)
        return UserError(
            f"rank {env.rank} of {env.world_size} ran out of memory with train.parallel="
            f"{train.parallel}: weights, gradients and two moments alone are {bytes_(held)} a "
            "rank; use more ranks with train.parallel=fsdp, raise train.accumulate or set "
            "train.recompute=full"
        )

    def _asked_to_save(self, step: int) -> bool:
        """Return whether this rank asks for a checkpoint after a step."""
        protocol, dot, _ = (self._config.checkpoint.keep_best or "").rpartition(".")
        is_during = dot and self._plan.steps_between(protocol) < self._plan.total_steps
        if is_during and not self._plan.is_evaluated(step + 1, protocol):
            return False  # only a state that is evaluated can be the best
        return self._store.is_due()

    def _fill(self, objective: Objective) -> None:
        for line in fill_from_sources(self._config, objective, self._env):
            self._console.say(line)
        objective.after_initial_weights()

    def _log_late(self, step: int) -> None:
        """Log an evaluation that a stop had cut off after the last step."""
        loggers = LoggerSet(self._console.warn)

        def opened() -> LoggerSet:
            self._open(loggers, step)
            return loggers

        log_evaluation(self._directory, self._plan, step, opened)
        loggers.close()

    def _open(self, loggers: LoggerSet, start: int) -> None:
        config = self._config
        context = LoggerContext(self._directory.path, config.name, config.as_dict(), start)
        loggers.open(config.log.loggers, context, self._console.say)

    def _train(self, start: int, owed: bool) -> None:
        """Train to the end; return to a checkpoint if a bad step requires it."""
        work = None
        if self._env.is_main:
            config, say = self._config, self._console.say
            work = functools.cache(lambda: measure_work(config, self._env, say))
            if config.log.profile is not None:
                work()  # before the steps, so that it is not profiled with them
        while True:
            try:
                with (
                    self._samples() as on_read,
                    self._loader(on_read) as loader,
                    self._journal(start, work) as journal,
                    Profiler(
                        self._config.log, self._directory, self._env, self._console, start
                    ) as profiler,
                ):
                    if owed:
                        journal.evaluated(start)
                    train(
                        self._executor,
                        loader,
                        self._plan,
                        start,
                        journal,
                        self._store,
                        self._evaluate,
                        self._preemption,
                        self._phase_timer,
                        profiler,
                    )
                break
            except RollBack as back:
                with self._phase_timer.during("start"):
                    start = self._recovery.go_back(back.bad, self._store, self._executor)
        if loader.unreadable:
            self._console.warn(
                f"{loader.unreadable} of the samples could not be read and were replaced"
            )

    def _check_protocols(self) -> None:
        """Check that the run's protocols can evaluate it."""
        if self._config.evaluation.protocols:
            context = self._context(self._objective)
            for protocol in self._config.evaluation.protocols:
                protocol.build().check(context)

    def _context(self, objective: Objective) -> EvaluationContext:
        return make_context(
            self._config,
            objective,
            self._data,
            self._directory.report,
            self._env,
            self._console,
            self._ranks,
            self._dataset.classes,
            self._kept,
        )

    def _evaluate(self, step: int) -> Mapping[str, float]:
        """Run the protocols that have no result at this step, and return their metrics."""
        config = self._config
        missing = from_main(
            lambda: missing_protocols(config, self._directory.report, step, self._plan), self._env
        )
        if missing:
            with self._executor.frozen(config.evaluation.weights) as objective:
                evaluate(config, missing, self._context(objective), step, self._console)
            # Sharded modules are in cycles: what was made for the evaluation alone goes at once.
            del objective
            gc.collect()
        return from_main(lambda: metrics_at(self._directory.report, step), self._env)

    def _make_up(self, step: int) -> None:
        """Evaluate the state after `step`, if a stop prevented it or it is due before training."""
        with self._phase_timer.during("evaluate"), self._preemption.leave_at_once(step):
            self._store.report(step, self._evaluate(step))

    def _journal(self, start: int, work: Callable[[], Work] | None) -> Journal:
        config, directory, env = self._config, self._directory, self._env
        loggers = LoggerSet(self._console.warn)
        from_main(lambda: self._open(loggers, start), env)
        return Journal(
            directory,
            config.log,
            self._plan,
            env,
            self._console,
            start,
            work,
            loggers,
            config.health,
            self._objective.healthy,
        )

    @contextlib.contextmanager
    def _samples(self) -> Iterator[OnRead | None]:
        share = self._config.executor.share(self._env.rank, self._env.world_size)
        if not self._config.log.samples or not share.is_leader:
            yield None
            return
        with self._directory.writing():
            log = SampleLog(self._directory.samples, share.rank)
        with contextlib.closing(log):
            yield log.add

    def _loader(self, on_read: OnRead | None) -> Loader:
        config, env, warn = self._config, self._env, self._console.warn
        return build_loader(config, self._dataset, self._plan, env, config.loader, warn, on_read)
