"""One optimizer step on one process or on data-parallel ranks, whole or sharded.

Every rank computes its micro-batches and adds up gradients of *sums*; the reduction runs once,
with the last micro-batch; then the gradient is divided by the number of targets of the whole
step, wherever they were counted. So N ranks and M micro-batches make the step of one big batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from quadriga import randomness
from quadriga.contracts import Batch, Executor, LossOutput, Objective, Progress, StepOutput
from quadriga.distributed.collectives import local_part, whole
from quadriga.distributed.environment import DistEnv
from quadriga.engine.build import build_objective
from quadriga.engine.meters.activity import Activity
from quadriga.engine.meters.throughput import CommunicationTimer
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.bad_step import BadStep, stop_at
from quadriga.engine.step.blocks import apply_recompute, compile_blocks
from quadriga.engine.step.precision import LossScale, reduced_precision
from quadriga.engine.step.sharding import Sharded, make_layout
from quadriga.engine.step.state import (
    copy_state,
    match_optimizer_state,
    optimizer_state,
    without_unbegun,
)
from quadriga.engine.step.sums import Reduced, Totals
from quadriga.optim.parts.ema import WeightAverage
from quadriga.optim.parts.groups import partial_optimizer


class MakeExecutor(Protocol):
    """What makes the executor of a run; see `DataParallelExecutor` for the arguments."""

    def __call__(
        self,
        objective: Objective,
        config: RunConfig,
        plan: RunPlan,
        env: DistEnv,
        *,
        activity: Activity | None = None,
        asked_to_stop: Callable[[], bool] = ...,
        on_bad_step: Callable[[BadStep], None] = ...,
        left_out: Container[int] = (),
    ) -> Executor:
        """Make it; every rank calls it."""
        ...


@final
class DataParallelExecutor(Executor):
    """One process, DDP, FSDP or HSDP: the same path; a world of one reduces nothing."""

    def __init__(
        self,
        objective: Objective,
        config: RunConfig,
        plan: RunPlan,
        env: DistEnv,
        *,
        activity: Activity | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
        on_bad_step: Callable[[BadStep], None] = stop_at,
        left_out: Container[int] = (),
    ) -> None:
        """Take over an initialised objective that lies on ``env.device``; every rank calls it.

        Args:
            objective: Changed in place: compiled, sharded.
            config: The run.
            plan: The run's numbers.
            env: This process among the run's.
            activity: Told what this rank is doing.
            asked_to_stop: Whether a signal asked this rank to stop.
            on_bad_step: Called on every rank when a loss or gradient is not finite, before the
                update; it raises, or returns to have the update left out.
            left_out: Steps that make no update.

        Raises:
            UserError: The ranks or the parameters are not what the config says.
        """
        self.objective, self._config, self._plan, self._env = objective, config, plan, env
        self._activity = activity or Activity()
        self._asked_to_stop, self._on_bad_step = asked_to_stop, on_bad_step
        self._left_out = left_out
        apply_recompute(objective, config.train.recompute)
        if config.train.compile:
            compile_blocks(objective)
        self.layout = make_layout(objective, config.train, env)
        self._communication = CommunicationTimer(self.layout.module, env.device)
        # Only now: sharding puts other parameters in the place of the whole ones.
        self._named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
        self._parts = _parts(self._named, objective.independent_parts)
        own = {objective.name_in_whole(name): p for name, p in self._named}
        self._optimizer = partial_optimizer(config.optim, objective.whole_parameters() or own, own)
        self._scale = LossScale(config.train.precision == "float16")
        self._skipped = 0
        self._average = None
        if config.ema.decay is not None:
            self._average = WeightAverage(self._named, config.ema.decay, config.ema.warmup)

    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
        """Make the steps, one output each; see `Executor.run`."""
        self.objective.train()
        for step in steps:
            output = self._step(batches, step)
            yield output
            if output.stop:
                return

    def _step(self, batches: Iterator[Batch], step: int) -> StepOutput:
        self._activity.begin_step(step)
        # Schedules, momenta and temperatures follow the updates that were made.
        progress = self._plan.progress(step - self._skipped)
        self.objective.before_step(progress)
        totals = Totals(self.objective.metric_names, self._env.device)
        is_left_out = step in self._left_out
        for micro in range(self._plan.accumulate):
            self._activity.enter("data")
            batch = next(batches)
            if not is_left_out:
                totals.add(self._micro_batch(batch, step, micro))
        self._activity.enter("reduce")
        reduced = totals.reduce(self._env, self._asked_to_stop())
        updated, stop, norm = self._judge(reduced, step, is_left_out)
        self._activity.enter("update")
        lr = self._plan.lr * self._config.schedule.factor(progress)
        if updated:
            self._update(lr, progress)
        else:
            self._skipped += 1
        self._optimizer.zero_grad(set_to_none=True)
        seconds = self._activity.end_step()
        if (exposed := self._communication.take_seconds()) is not None:
            seconds["communication"] = exposed
        samples = self._plan.batch_size
        return StepOutput(step, reduced.metrics, norm, lr, samples, seconds, not updated, stop)

    def _micro_batch(self, batch: Batch, step: int, micro: int) -> LossOutput:
        """Compute a micro-batch forward and backward; the gradients add up."""
        with (
            randomness.micro_batch(self._config.seed, step, micro, self._env.rank),
            self.layout.micro_batch(micro == self._plan.accumulate - 1),
        ):
            self._activity.enter("forward")
            with reduced_precision(self._env.device, self._config.train):
                output: LossOutput = self.layout.module(batch)
            self._activity.enter("backward")
            # Bounded by the loss itself, not by the number of targets; undone in _judge.
            loss = output.loss / (self._plan.batch_size / self._scale.value)
            loss.backward()  # type: ignore[no-untyped-call]
            self._communication.backward_ended()
        return output

    def _judge(self, reduced: Reduced, step: int, is_left_out: bool) -> tuple[bool, bool, Tensor]:
        """Scale and clip the gradient; decide, the same on all ranks, whether it is applied.

        The ranks' gradients were averaged and the losses divided by the batch size, so the
        gradient of the mean is ``world_size * batch_size / count`` times what is there.

        Returns:
            Whether to update, whether to stop after this step, and the norm before clipping.
        """
        if is_left_out:
            return False, bool(reduced.asked_to_stop), torch.full((), torch.nan)
        gradients = [
            [local_part(p.grad) for p in part if p.grad is not None] for part in self._parts
        ]
        ranks, batch = self._env.world_size, self._plan.batch_size
        factor = (ranks * batch / (reduced.targets * self._scale.value)).to(torch.float32)
        squares = torch.stack([self.layout.square_sum(part) for part in gradients])
        norm = squares.sum().sqrt() * factor
        # The one moment of a step in which the host waits for the device.
        has_targets, loss_is_finite, finite, stop = (
            torch.stack(
                [
                    reduced.targets > 0,
                    reduced.metrics["loss"].isfinite(),
                    norm.isfinite(),
                    reduced.asked_to_stop > 0,
                ]
            )
            .cpu()
            .tolist()
        )
        if not has_targets:  # 0 / 0: nothing to learn from, and no fault
            return False, stop, norm
        good = loss_is_finite and finite
        if not good and not self._scale.forgives(loss_is_finite):
            value = reduced.metrics["loss"] if not loss_is_finite else norm
            what = "gradient norm" if loss_is_finite else "loss"
            # Whoever goes on from here must not add to these.
            self._optimizer.zero_grad(set_to_none=True)
            updates = step - self._skipped
            with self._activity.during("save"):  # the weights go to a file
                self._on_bad_step(BadStep(step, what, float(value), self._scale.value, updates))
        if loss_is_finite:
            self._scale.update(overflowed=not finite)
        if good:
            clip = self._config.optim.clip_norm
            for part, square in zip(gradients, squares, strict=True):
                own = factor
                if clip is not None:
                    own = factor * (clip / (square.sqrt() * factor + 1e-6)).clamp(max=1.0)
                torch._foreach_mul_(part, own)
        return good, stop, norm

    def _update(self, lr: float, progress: Progress) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._optimizer.step()
        if self._average is not None:
            self._average.update(progress.step)
        self.objective.after_step(progress)

    @contextlib.contextmanager
    def frozen(self, weights: str = "raw") -> Iterator[Objective]:
        """Return a context that gives the whole objective for evaluation; see `Executor.frozen`."""
        average = self._average if weights == "ema" else None
        with contextlib.ExitStack() as stack:
            if self._config.train.compile:
                # Other shapes, no gradients: to compile for each takes longer than it saves.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if average is not None:
                stack.enter_context(average.swapped_in())
            yield self._gathered() if isinstance(self.layout, Sharded) else self.objective

    @torch.no_grad()
    def _gathered(self) -> Objective:
        """Return a copy of the objective in which every tensor is whole."""
        copy = build_objective(self._config, self._env.device, self._config.seed)
        targets = copy.state_dict()
        for name, tensor in self.objective.state_dict().items():
            targets[name].copy_(whole(tensor))
        return copy

    def state_dict(self) -> dict[str, Any]:
        """Return live tensors by global name, sharded ones as they are.

        ``objective.NAME``, ``optimizer.PARAMETER.KEY``, ``ema.PARAMETER`` and ``executor.NAME``.
        """
        state = {f"objective.{name}": t for name, t in self.objective.state_dict().items()}
        state |= optimizer_state(self._optimizer, dict(self._named))
        if self._average is not None:
            state |= {f"ema.{name}": t for name, t in self._average.tensors.items()}
        own = {"skipped": torch.tensor(self._skipped), **self._scale.state_dict()}
        return {**state, **{f"executor.{name}": tensor for name, tensor in own.items()}}

    def match_state(self, names: Collection[str]) -> None:
        """Make or drop the optimizer's state as `names` have it; see `Executor.match_state`."""
        match_optimizer_state(self._optimizer, dict(self._named), names)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy `state` into the live tensors; see `Executor.load_state_dict`."""
        state = without_unbegun(state)
        self.match_state(state)
        copy_state(self.state_dict(), state)
        self._skipped = int(state["executor.skipped"])
        self._scale.load_state_dict(
            {name.removeprefix("executor."): value for name, value in state.items()}
        )


def _parts(
    named: Sequence[tuple[str, nn.Parameter]], beginnings: Sequence[str]
) -> list[list[nn.Parameter]]:
    """Return the parameters that are clipped together: all, or those of each part."""
    found = [[p for n, p in named if n.startswith(begin)] for begin in beginnings or ("",)]
    assert sum(map(len, found)) == len(named), "every parameter belongs to one part"
    return found
