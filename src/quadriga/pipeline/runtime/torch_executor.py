"""The executor of torch's pipeline schedules, over the same stages as this package's schedules.

``torch.distributed.pipelining`` orders the passes; cutting, reduction, clipping, the optimizer and
the state come from `StagedExecutor`. Each step flushes. torch fixes the shape of the tensors sent
between stages, so all micro-batches must have one shape: ``views.padding=fixed``.

torch_gpipe, torch_1f1b (one stage per rank); interleaved (Narayanan et al., SC 2021); zero_bubble
and zbv (Qi et al., ICLR 2024); dualpipev (DeepSeek-V3, arXiv:2412.19437; two stages per rank).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.pipelining import schedules

from quadriga import randomness
from quadriga.contracts import Batch, LossOutput, MicroBatch, Objective, Stage, StepOutput
from quadriga.distributed.environment import DistEnv
from quadriga.engine.run_config import RunConfig, TrainConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.precision import reduced_precision
from quadriga.errors import UserError
from quadriga.pipeline.config import PipelineConfig
from quadriga.pipeline.runtime.partition import V_SHAPED
from quadriga.pipeline.runtime.staged import StagedExecutor, batches_of
from quadriga.pipeline.runtime.updates import Outcome

TORCH_SCHEDULES: dict[str, type[Any]] = {
    "torch_gpipe": schedules.ScheduleGPipe,
    "torch_1f1b": schedules.Schedule1F1B,
    "interleaved": schedules.ScheduleInterleaved1F1B,
    "zero_bubble": schedules.ScheduleInterleavedZeroBubble,
    "zbv": schedules.ScheduleZBVZeroBubble,
    "dualpipev": schedules.ScheduleDualPipeV,
}
"""Name on the command line -> torch's schedule."""

_SINGLE = ("torch_gpipe", "torch_1f1b")


def check_torch_schedule(pipeline: PipelineConfig, train: TrainConfig, stages: int) -> None:
    """Check the requirements of torch's schedules.

    Raises:
        UserError: The number of stages or micro-batches does not suit the schedule, or
            `train.recompute` is not none: some of these schedules split a backward pass in two.
    """
    name = pipeline.schedule
    if train.recompute != "none":
        raise UserError(
            f"train.recompute must be none for executor.schedule={name}, but is "
            f"{train.recompute}; use 1f1b or 2bw"
        )
    held, micro_batches = pipeline.stages_per_rank, train.accumulate
    if stages < 2:
        raise UserError(
            f"executor.stages must be at least 2 for executor.schedule={name}, but is {stages}; "
            "use 1f1b or 2bw for one stage"
        )
    if (name in _SINGLE or pipeline.conf is not None) and held != 1:
        by = f"{name} with executor.conf" if pipeline.conf is not None else name
        raise UserError(f"executor.stages_per_rank must be 1 for {by}, but is {held}")
    if name in V_SHAPED and held != 2:
        raise UserError(f"executor.stages_per_rank must be 2 for {name}, but is {held}")
    least = 2 * stages if name == "dualpipev" else stages
    if micro_batches < least and name != "torch_gpipe":
        raise UserError(
            f"train.accumulate must be at least {least} for {name} with {stages} ranks in a "
            f"pipeline, but is {micro_batches}"
        )
    if name in ("interleaved", "zero_bubble") and _left_over(micro_batches, stages):
        # Every multiple of the stages suits.
        around = range(micro_batches, micro_batches + stages)
        above = next(number for number in around if not _left_over(number, stages))
        below = next(n for n in range(micro_batches, 0, -1) if not _left_over(n, stages))
        raise UserError(
            f"train.accumulate must give {name} rounds of equal length on {stages} ranks in a "
            f"pipeline, but is {micro_batches}; the nearest are {below} and {above}"
        )


def _left_over(micro_batches: int, stages: int) -> int:
    return micro_batches % max(1, micro_batches // stages)


@final
class _Step(nn.Module):
    """A stage with the call that torch makes: the micro-batch is passed by number, int64."""

    def __init__(self, stage: Stage, executor: TorchScheduleExecutor, is_first: bool) -> None:
        super().__init__()
        self.stage = stage
        self._executor = [executor]  # in a list, so that torch does not treat it as a submodule
        self._is_first = is_first

    def forward(self, hidden: Tensor, micro: Tensor) -> Tensor:
        (executor,) = self._executor
        config, number = executor.config, int(micro)
        with (
            randomness.micro_batch(config.seed, executor.step, number, executor.groups.replica),
            reduced_precision(executor.env.device, config.train),
        ):
            batch = executor.batches[number]
            output: Tensor | LossOutput = self.stage(None if self._is_first else hidden, batch)
        if isinstance(output, LossOutput):
            executor.losses[number] = output
            return (output.only.total.float() / config.train.accumulate).reshape(1)
        return output.float()


@final
class TorchScheduleExecutor(StagedExecutor):
    """One or several stages on each rank, under a schedule of torch."""

    def __init__(
        self, objective: Objective, config: RunConfig, plan: RunPlan, env: DistEnv, **options: Any
    ) -> None:
        """Build this rank's stages; collective.

        Args:
            objective: As for `StagedExecutor`.
            config: The run's config.
            plan: The run's plan.
            env: This process's rank, device and world size.
            **options: Options of `StagedExecutor`.

        Raises:
            UserError: The stages, ranks and micro-batches do not fit each other.
        """
        super().__init__(objective, config, plan, env, **options)
        check_torch_schedule(self.pipeline, config.train, self.topology.stages)
        self.step = 0
        self.batches: Sequence[Batch] = ()
        self.losses: dict[int, LossOutput] = {}
        self._schedule: Any = None
        self._shape: tuple[int, ...] | None = None

    def run(self, batches: Iterator[MicroBatch], steps: range) -> Iterator[StepOutput]:
        """Make the steps, one output each; see `Executor.run`."""
        self.versions.newest.train()
        self.versions.begin_at(steps.start)
        for step in steps:
            self.phase_timer.begin_step(step)
            outcome = self._make(step, batches_of(self, batches))
            verdict = outcome.verdict
            if verdict.bad is not None:
                self.handle_bad_step(verdict.bad)
            yield self.report(outcome, verdict.stop, verdict.save)
            if verdict.stop or verdict.save:
                return

    def _make(self, step: int, batches: Sequence[Batch]) -> Outcome:
        self.step, self.batches, self.losses = step, batches, {}
        self._require_equal_shapes()
        own = self.versions.tensors(step)
        (gradients,) = self.updates.buffers
        gradients.collect(own)
        self.phase_timer.enter("pipeline")  # torch does not separate waiting from computing
        numbers = torch.arange(self.plan.accumulate)
        has_first = "0" in self.versions.newest.stages
        # torch accepts targets on the rank of the last stage only; the loss ignores them.
        has_last = str(len(self.topology.depths) - 1) in self.versions.newest.stages
        target = {"target": numbers} if has_last else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's schedules are marked as experimental
            schedule = self._ready()
            schedule.step(*([numbers] if has_first else []), micro=numbers, **target)
        gradients.release(own)
        sums = self.updates.new_sums()
        for number in sorted(self.losses):
            sums.add(self.losses[number])
        self.begin_update(step, sums)
        return self.finish_update(step)

    def _require_equal_shapes(self) -> None:
        stage = next(iter(self.versions.newest.stages.values()))
        shapes = {cast(Stage, stage).hidden_shape(batch) for batch in self.batches}
        if self._shape is not None:
            shapes.add(self._shape)
        if len(shapes) > 1:
            raise UserError(
                f"executor.schedule={self.pipeline.schedule} needs micro-batches of one "
                f"shape, but they have {sorted(shapes)}; set views.padding=fixed and a "
                "train.batch_size that ranks and micro-batches divide"
            )
        (self._shape,) = shapes

    def _ready(self) -> Any:
        """Return torch's schedule over this rank's stages; made once, at the first step."""
        if self._schedule is not None:
            return self._schedule
        total, name = len(self.topology.depths), self.pipeline.schedule
        device = self.env.device
        hidden = torch.empty(self._shape or (), device="meta")
        made = []
        for key, stage in self.versions.newest.stages.items():
            number = int(key)
            is_first, is_last = number == 0, number == total - 1
            made.append(
                pipelining.PipelineStage(
                    _Step(cast(Stage, stage), self, is_first),
                    number,
                    total,
                    device,
                    input_args=torch.empty(1, dtype=torch.int64, device="meta")
                    if is_first
                    else hidden.clone().requires_grad_(),
                    output_args=torch.empty(1, device="meta", requires_grad=True)
                    if is_last
                    else hidden.clone().requires_grad_(),
                    group=self.groups.pipeline,
                )
            )
        self._schedule = TORCH_SCHEDULES[name](
            made[0] if name in _SINGLE else made,
            self.plan.accumulate,
            loss_fn=lambda output, target: output.sum(),
            scale_grads=False,
        )
        return self._schedule
