"""Pipelined execution: each rank runs its stage of its copy, in the order of a schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

from quadriga.contracts import Batch, Objective, StepOutput
from quadriga.distributed.environment import DistEnv
from quadriga.engine.recompute import apply_recompute
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.pipeline.runtime.stage_runner import StageRunner
from quadriga.pipeline.runtime.staged import StagedExecutor
from quadriga.pipeline.schedules import make_schedule
from quadriga.pipeline.schedules.actions import Place, Schedule
from quadriga.pipeline.segment import Segment


@final
class PipelineExecutor(StagedExecutor):
    """One stage on each rank, under a schedule of this package.

    2bw equals the delayed gradient method ``W(t+1) = W(t) - lr * grad f(W(t-1))`` whatever the
    numbers of stages, copies and micro-batches; the other schedules equal the whole model.
    """

    def __init__(
        self,
        objective: Objective,
        config: RunConfig,
        plan: RunPlan,
        env: DistEnv,
        **options: Any,
    ) -> None:
        """Take this rank's stage and connect to its neighbours; every rank calls it.

        Args:
            objective: As for `StagedExecutor`.
            config: The run.
            plan: Its numbers.
            env: This process among the run's.
            **options: Those of `StagedExecutor`.

        Raises:
            UserError: The stages, ranks and micro-batches do not fit each other.
        """
        pipeline = config.pipeline
        self.schedule: Schedule = make_schedule(pipeline.schedule, pipeline.flushed_steps)
        super().__init__(objective, config, plan, env, versions=1 + self.schedule.delay, **options)
        stages = self.topology.stages
        self.schedule.check(stages, plan.accumulate)
        self.place = Place(self.groups.stage, stages, plan.accumulate)
        in_flight = self.schedule.in_flight(self.place)
        self.runner = StageRunner(config, self.groups, env, self.activity, stages, in_flight)
        if config.train.recompute == "full" and stages == in_flight == 1:
            # The whole model and one micro-batch of it: to drop all of it would gain nothing.
            for bank in self.banks.modules:
                apply_recompute(bank, "full")
            self.runner.blocks_recompute = True

    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
        """Make the steps, one output each; see `Executor.run`."""
        for bank in self.banks.modules:
            bank.train()
        self.banks.begin_at(steps.start)
        self.activity.begin_step(steps.start)
        following = steps.start
        while following < steps.stop:
            for output in Segment(self, batches, range(following, steps.stop)).outputs():
                yield output
                if output.stop:
                    return
                following = output.step + 1
