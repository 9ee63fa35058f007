"""Handling of bad steps: record the step, skip its update, or roll back to a checkpoint."""

from __future__ import annotations

from typing import final

from quadriga.config.provenance import Resolved
from quadriga.contracts import Executor, Objective
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import DistEnv
from quadriga.engine.build import make_stream
from quadriga.engine.checkpoint.store import CheckpointStore, newest_valid
from quadriga.engine.faults.replay import write_replay
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.journal import Events
from quadriga.engine.logs.results import forget_results_after
from quadriga.engine.logs.samples import rewind_samples
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.bad_step import BadStep, Health, SkippedSteps, stop_at


@final
class Recovery:
    """Applies ``health.non_finite`` in a run's directory."""

    def __init__(
        self,
        resolved: Resolved[RunConfig],
        directory: RunDirectory,
        plan: RunPlan,
        env: DistEnv,
        console: Console,
        objective: Objective | None,
    ) -> None:
        """Read the run's skipped steps; every rank calls it.

        Without an objective (no rank has the whole model), bad steps get no replay file.

        Raises:
            UserError: ``left_out.json`` is damaged.
        """
        self._resolved, self._directory, self._plan = resolved, directory, plan
        self._env, self._console, self._objective = env, console, objective
        # Read on rank 0 only: with a stale network file system, ranks would skip different steps.
        self.skipped_steps = from_main(lambda: SkippedSteps(directory.path / "left_out.json"), env)
        health = resolved.config.health
        self.health = Health(health, self.skipped_steps, self._record, self._tell)

    def go_back(self, bad: BadStep, store: CheckpointStore, executor: Executor) -> int:
        """Load the newest checkpoint before a bad step; every rank calls it.

        The first time, the steps since the checkpoint are repeated, because a hardware fault does
        not recur. If the same step is bad again, the cause is the data or the weights: the
        updates from the checkpoint to this step are then skipped.

        Returns:
            The number of finished steps in the checkpoint.

        Raises:
            UserError: There is no checkpoint, or too many steps have caused a rollback.
        """
        store.wait()
        directory, skipped_steps = self._directory, self.skipped_steps
        # Not after the bad step: a later checkpoint that failed verification at the start may be
        # readable now.
        found = from_main(
            lambda: newest_valid(directory.checkpoints, self._console.warn, bad.step), self._env
        )
        if found is None:
            stop_at(bad, "; there is no checkpoint to go back to (checkpoint.every_steps)")
        if len(skipped_steps.tried) >= self._resolved.config.health.max_bad_steps:
            steps = f"{len(skipped_steps.tried)} steps have made the run go back already"
            stop_at(bad, f"; {steps} (health.max_bad_steps)")
        start = store.load(found, executor)
        if bad.step in skipped_steps.tried:
            skipped_steps.ranges.append((start, bad.step))
            what = f"leaving out the updates of steps {start + 1} to {bad.step + 1}"
        else:
            skipped_steps.tried.append(bad.step)
            what = "the steps since then are made again"

        def note() -> None:
            directory.rewind_metrics(start)
            with directory.writing():
                skipped_steps.save()
                rewind_samples(directory.samples, start)
                forget_results_after(directory.report, start)
                events, value = Events(directory.events), str(bad.value)
                events.write("rollback", bad.step + 1, back_to=start, what=bad.what, value=value)
            self._console.warn(f"{bad}: back to {found.name}, {what}")

        from_main(note, self._env)
        return start

    def _record(self, bad: BadStep) -> str:
        where = ""
        if self._objective is not None:
            where = write_replay(
                self._directory.replay, self._resolved, self._plan, self._env, self._objective, bad
            )
        from_main(lambda: self._note(bad, where), self._env)
        return where

    def _note(self, bad: BadStep, where: str) -> None:
        parts = make_stream(self._resolved.config, self._plan).parts(bad.step)
        with self._directory.writing():
            Events(self._directory.events).write(
                "bad step",
                bad.step + 1,
                what=bad.what,
                value=str(bad.value),
                samples=[index for part in parts for index in part.index.tolist()],
                replay=where,
            )

    def _tell(self, bad: BadStep, text: str) -> None:
        if self._env.is_main:
            self._console.warn(text)
