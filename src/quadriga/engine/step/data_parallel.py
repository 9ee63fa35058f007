"""Optimizer steps in one process or on data-parallel ranks, with replicated or sharded state.

Gradients of *sums* are added over micro-batches and ranks and divided once by the number of targets
of the whole step. So N ranks and M micro-batches compute the step of one large batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from quadriga.contracts import Executor, MicroBatch, Objective, StepOutput
from quadriga.data.reading.sampling import deal
from quadriga.distributed.collectives import local_part
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.mesh import make_ranks
from quadriga.distributed.slots import Slots
from quadriga.engine.build import Fill
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.bad_step import BadStep, stop_at
from quadriga.engine.step.blocks import apply_recompute, compile_blocks
from quadriga.engine.step.passes import Passes
from quadriga.engine.step.precision import LossScale
from quadriga.engine.step.sharding import make_layout, shard_ranks
from quadriga.engine.step.state import copy_state, without_unbegun
from quadriga.engine.step.statistics import share_statistics
from quadriga.engine.step.sums import MetricSums
from quadriga.engine.step.update import Update, Verdict
from quadriga.optim.parts.groups import partial_optimizer


@final
class DataParallelExecutor(Executor):
    """Executor for one process, replicas or shards, in one code path."""

    def __init__(
        self,
        objective: Objective,
        config: RunConfig,
        plan: RunPlan,
        env: DistEnv,
        *,
        fill: Fill | None = None,
        phase_timer: PhaseTimer | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
        asked_to_save: Callable[[int], bool] = lambda step: False,
        on_bad_step: Callable[[BadStep], None] = stop_at,
        skipped_steps: Container[int] = (),
    ) -> None:
        """Compile, shard and initialise an objective, and make its optimizer; every rank calls it.

        Args:
            objective: Changed in place. If it is on the meta device, each rank allocates its part
                on ``env.device`` after sharding and initialises it.
            config: The run.
            plan: The plan of the run's steps.
            env: This process among the run's.
            fill: Loads weights from other sources into the initialised objective.
            phase_timer: Records this rank's phases.
            asked_to_stop: Returns whether this rank has received a stop signal.
            asked_to_save: Returns whether this rank asks for a checkpoint after a step.
            on_bad_step: Called on every rank when a loss or gradient is not finite, before the
                update; it raises, or returns to skip the update.
            skipped_steps: Steps without an update.

        Raises:
            UserError: The ranks or the parameters do not match the config.
        """
        self.objective, self._config, self._plan, self._env = objective, config, plan, env
        self._phase_timer = phase_timer or PhaseTimer()
        self._asked_to_stop, self._asked_to_save = asked_to_stop, asked_to_save
        self._on_bad_step = on_bad_step
        train = config.train
        self.ranks = make_ranks(env, shard=shard_ranks(train, env.world_size, env.local_world_size))
        apply_recompute(objective, train.recompute)
        if train.compile:
            compile_blocks(objective)
        self.layout = make_layout(objective, train, self.ranks, config.seed)
        if fill is not None:
            fill(objective)
        # Not earlier, because allocation and sharding replace the parameters.
        named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
        self._parts = _parts(named, objective.independent_parts)
        own = {objective.name_in_whole(name): p for name, p in named}
        optimizer = partial_optimizer(config.optim, objective.whole_parameters() or own, own)
        scale = LossScale(train.precision == "float16", train.loss_scale)
        self._update = Update(named, optimizer, config, plan, skipped_steps, scale)
        shares = deal(plan.batch_size, env.world_size, plan.accumulate)
        share_statistics(objective, shares, self.ranks)
        slots = Slots(self.ranks.samples, [[s for part in rank for s in part] for rank in shares])
        self._passes = Passes(
            objective, self.layout, config, plan, env, slots, scale, self._phase_timer
        )

    def run(self, batches: Iterator[MicroBatch], steps: range) -> Iterator[StepOutput]:
        """Run the steps and yield one output for each; see `Executor.run`."""
        self.objective.train()
        for step in steps:
            output = self._step(batches, step)
            yield output
            if output.stop or output.save:
                return

    def _step(self, batches: Iterator[MicroBatch], step: int) -> StepOutput:
        self._phase_timer.begin_step(step)
        update = self._update
        progress = update.progress(step)
        self.objective.before_step(progress)
        sums = MetricSums(self.objective, self._env.device)
        if update.is_skipped(step):
            self._phase_timer.enter("data")
            for _ in range(self._plan.accumulate):
                next(batches)
        else:
            self._passes.run(batches, step, sums)
        self._phase_timer.enter("reduce")
        verdict, metrics = self._check_step(step, sums)
        self._phase_timer.enter("update")
        if verdict.is_applied:
            update.step(progress)
            update.update_ema(progress)
            metrics |= self.objective.after_step(progress, *self._passes.collect()) or {}
        else:
            self._passes.forget()
            update.skipped += 1
        update.optimizer.zero_grad(set_to_none=True)
        seconds = self._phase_timer.end_step()
        if (exposed := self.layout.take_exposed_seconds()) is not None:
            seconds["communication"] = exposed
        return StepOutput(
            step,
            metrics,
            verdict.norm,
            update.lr(progress),
            self._plan.samples(step + 1) - self._plan.samples(step),
            seconds,
            not verdict.is_applied,
            verdict.stop,
            verdict.save,
        )

    def _check_step(self, step: int, sums: MetricSums) -> tuple[Verdict, dict[str, Tensor]]:
        """Decide whether a step's gradient is applied; if so, scale and clip it."""
        update = self._update
        reduced = sums.reduce(self._env, self._asked_to_stop(), self._asked_to_save(step))
        if update.is_skipped(step):
            return update.check_step(step, reduced, (), reduced.targets), reduced.metrics
        for name, parameter in update.named:
            if name.startswith(self.objective.frozen_parts):
                parameter.grad = None  # the optimizer ignores it
            elif parameter.grad is None:
                # As with several ranks: an unused parameter has a gradient of zero.
                parameter.grad = torch.zeros_like(parameter)
        gradients = [
            [local_part(p.grad) for p in part if p.grad is not None] for part in self._parts
        ]
        squares = [self.layout.square_sum(part) for part in gradients]
        verdict = update.check_step(step, reduced, squares, self._passes.factor(reduced.targets))
        if verdict.bad is not None:
            # The next step must not add to these gradients.
            update.optimizer.zero_grad(set_to_none=True)
            with self._phase_timer.during("save"):  # writes the replay file
                self._on_bad_step(verdict.bad)
        elif verdict.is_applied:
            for part, factor in zip(gradients, verdict.factors, strict=True):
                torch._foreach_mul_(part, factor)
        return verdict, reduced.metrics

    @contextlib.contextmanager
    def frozen(self, weights: str = "raw") -> Iterator[Objective]:
        """Return a context that yields the objective for evaluation; see `Executor.frozen`."""
        ema = self._update.ema if weights == "ema" else None
        with contextlib.ExitStack() as stack:
            if self._config.train.compile:
                # Evaluation has other shapes and no gradients: compiling costs more than it saves.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if ema is not None:
                stack.enter_context(ema.swapped_in())
            yield self.objective

    def state_dict(self) -> dict[str, Any]:
        """Return global name -> live tensor; sharded tensors stay DTensors.

        ``objective.NAME``, ``optimizer.PARAMETER.KEY``, ``ema.PARAMETER`` and ``executor.NAME``.
        """
        state = {f"objective.{name}": t for name, t in self.objective.state_dict().items()}
        return {**state, **self._update.state_dict()}

    def match_state(self, names: Collection[str]) -> None:
        """Create or drop optimizer state to match `names`; see `Executor.match_state`."""
        self._update.match_state(names)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy `state` into the live tensors; see `Executor.load_state_dict`."""
        state = without_unbegun(state)
        self.match_state(state)
        copy_state(self.state_dict(), state)
        self._update.load_numbers(state)


def _parts(
    named: Sequence[tuple[str, nn.Parameter]], beginnings: Sequence[str]
) -> list[list[nn.Parameter]]:
    """Return the groups of parameters that are clipped together: all, or one group per part."""
    found = [[p for n, p in named if n.startswith(begin)] for begin in beginnings or ("",)]
    assert sum(map(len, found)) == len(named), "every parameter belongs to one part"
    return found
