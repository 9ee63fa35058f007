"""The executor of this package's schedules: each rank runs one stage of one replica."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

from quadriga.contracts import Batch, MicroBatch, Objective, StepOutput
from quadriga.distributed.environment import DistEnv
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.blocks import apply_recompute
from quadriga.engine.step.sums import MetricSums
from quadriga.pipeline.config import pipeline_of
from quadriga.pipeline.runtime.stage_runner import StageRunner
from quadriga.pipeline.runtime.staged import StagedExecutor
from quadriga.pipeline.runtime.updates import Outcome
from quadriga.pipeline.schedules import make_schedule
from quadriga.pipeline.schedules.actions import Backward, Forward, Place, Schedule, Update, Wait


@final
class Segment:
    """A run of steps that begins and ends with an empty pipeline.

    It ends when all steps are made, when a rank receives a stop signal or asks for a checkpoint,
    or when a loss or gradient is not finite. In all but the first case no further step begins; the
    steps in flight are finished and count. All ranks get the same outcomes at the same action of
    the schedule, so all of them stop before the same step.
    """

    def __init__(
        self, executor: PipelineExecutor, batches: Iterator[MicroBatch], steps: range
    ) -> None:
        """Prepare to make `steps`, or fewer, from `batches`."""
        self._executor, self._batches, self._steps = executor, batches, steps
        self._read: dict[int, Batch] = {}
        self._sums: dict[int, MetricSums] = {}
        self._begun: int | None = None
        self._ends = self._stops = self._saves = False
        self._held: list[Outcome] = []

    def outputs(self) -> Iterator[StepOutput]:
        """Carry the actions out; yield each step's output when its update is done."""
        executor = self._executor
        schedule, place = executor.schedule, executor.place
        for action in schedule.actions(place, self._steps.start, self._goes_on):
            match action:
                case Forward(step, micro):
                    self._forward(step, micro)
                case Backward(step, micro):
                    self._backward(step, micro)
                case Update(step):
                    gradients = executor.updates.buffers[step % executor.versions.count]
                    gradients.release(executor.versions.tensors(schedule.version(step)))
                    executor.begin_update(step, self._sums.pop(step))
                case Wait(step):
                    outcome = executor.finish_update(step)
                    verdict = outcome.verdict
                    self._stops = self._stops or verdict.stop
                    self._saves = self._saves or verdict.save
                    self._ends = self._stops or self._saves or verdict.bad is not None or self._ends
                    if verdict.bad is not None or self._held:
                        self._held.append(outcome)
                    else:
                        yield self._report(outcome)
                        # After the yield, so that the hang report of a rank that is stuck in
                        # logging names the logged step.
                        executor.phase_timer.begin_step(step + 1)
        executor.runner.finish()
        for outcome in self._held:
            if outcome.verdict.bad is not None:
                executor.handle_bad_step(outcome.verdict.bad)
            yield self._report(outcome)
            executor.phase_timer.begin_step(outcome.verdict.step + 1)

    def _goes_on(self, step: int) -> bool:
        if self._ends or step >= self._steps.stop:
            return False
        self._begun = step
        self._sums[step] = self._executor.updates.new_sums()
        return True

    def _report(self, outcome: Outcome) -> StepOutput:
        is_last = outcome.verdict.step == self._begun
        return self._executor.report(
            outcome, stop=is_last and self._stops, save=is_last and self._saves
        )

    def _forward(self, step: int, micro: int) -> None:
        executor, runner = self._executor, self._executor.runner
        module = executor.versions.module(executor.schedule.version(step)).only
        # Expect one micro-batch ahead within the step: its input may arrive during this pass.
        for wanted in range(micro, min(micro + 2, executor.place.micro_batches)):
            if wanted not in self._read:
                self._read[wanted] = executor.next_batch(self._batches)
                runner.expect(module, self._read[wanted])
        output = runner.forward(module, self._read.pop(micro), step, micro)
        if output is not None:
            self._sums[step].add(output)

    def _backward(self, step: int, micro: int) -> None:
        executor = self._executor
        if micro == 0:
            gradients = executor.updates.buffers[step % executor.versions.count]
            gradients.collect(executor.versions.tensors(executor.schedule.version(step)))
        executor.runner.backward(step, micro)


@final
class PipelineExecutor(StagedExecutor):
    """One stage on each rank, under a schedule of this package.

    For every number of stages, replicas and micro-batches, 2bw equals the delayed gradient method
    ``W(t+1) = W(t) - lr * grad f(W(t-1))``, and the other schedules equal training without
    stages.
    """

    def __init__(
        self,
        objective: Objective,
        config: RunConfig,
        plan: RunPlan,
        env: DistEnv,
        **options: Any,
    ) -> None:
        """Build this rank's stage and connect it to its neighbours; collective.

        Args:
            objective: As for `StagedExecutor`.
            config: The run's config.
            plan: The run's plan.
            env: This process's rank, device and world size.
            **options: Options of `StagedExecutor`.

        Raises:
            UserError: The stages, ranks and micro-batches do not fit each other.
        """
        pipeline = pipeline_of(config)
        self.schedule: Schedule = make_schedule(pipeline.schedule, pipeline.flushed_steps)
        super().__init__(objective, config, plan, env, versions=1 + self.schedule.delay, **options)
        stages = self.topology.stages
        self.schedule.check(stages, plan.accumulate)
        self.place = Place(self.groups.stage, stages, plan.accumulate)
        in_flight = self.schedule.in_flight(self.place)
        self.runner = StageRunner(config, self.groups, env, self.phase_timer, stages, in_flight)
        if config.train.recompute == "full" and stages == in_flight == 1:
            # One stage holds the whole model and one micro-batch: recomputing it as one piece
            # would save no memory, so recompute block by block.
            for module in self.versions.modules:
                apply_recompute(module, "full")
            self.runner.blocks_recompute = True

    def run(self, batches: Iterator[MicroBatch], steps: range) -> Iterator[StepOutput]:
        """Make the steps, one output each; see `Executor.run`."""
        for module in self.versions.modules:
            module.train()
        self.versions.begin_at(steps.start)
        self.phase_timer.begin_step(steps.start)
        following = steps.start
        while following < steps.stop:
            for output in Segment(self, batches, range(following, steps.stop)).outputs():
                yield output
                if output.stop or output.save:
                    return
                following = output.step + 1
