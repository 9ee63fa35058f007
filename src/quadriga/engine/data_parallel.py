"""One optimizer step on one process or on data-parallel replicas.

Every rank computes its micro-batches and adds up gradients of *sums*; the reduction runs once,
with the last micro-batch; then the gradient is divided by the number of targets of the whole
step, wherever they were counted. So N ranks and M micro-batches make the step of one big batch.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quadriga import randomness
from quadriga.contracts import (
    Batch,
    Executor,
    LossOutput,
    Objective,
    OptimizerConfig,
    ScheduleConfig,
    StepOutput,
)
from quadriga.distributed.collectives import all_reduce_sum
from quadriga.distributed.environment import DistEnv
from quadriga.engine.activity import Activity
from quadriga.engine.arithmetic import RunPlan
from quadriga.engine.precision import reduced_precision
from quadriga.optim.groups import materialise_state


@final
class DataParallelExecutor(Executor):
    """Single process or DistributedDataParallel: the same path, a world of one reduces nothing."""

    def __init__(
        self,
        objective: Objective,
        optim: OptimizerConfig,
        schedule: ScheduleConfig,
        plan: RunPlan,
        env: DistEnv,
        seed: int,
        precision: torch.dtype = torch.float32,
        activity: Activity | None = None,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take over an initialised objective that lies on ``env.device``."""
        self._activity = activity or Activity()
        self._stop_asked = stop_asked
        self.objective = objective
        self._named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
        self._parameters = [parameter for _, parameter in self._named]
        self._optimizer = optim.build(self._named)
        materialise_state(self._optimizer)
        self._schedule, self._plan, self._env, self._seed = schedule, plan, env, seed
        self._clip_norm = optim.clip_norm
        self._precision = precision
        self._model: nn.Module = objective
        if env.world_size > 1:
            self._model = _replicated(objective, env.device)

    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
        """Make the steps, one output each; see `Executor.run`."""
        self.objective.train()
        for step in steps:
            output = self._step(batches, step)
            yield output
            if output.stop:
                return

    def _step(self, batches: Iterator[Batch], step: int) -> StepOutput:
        began, waited = time.perf_counter(), 0.0
        self._activity.begin_step(step)
        progress = self._plan.progress(step)
        self.objective.before_step(progress)
        totals = _Totals(self.objective.metric_names, self._env.device)
        for micro in range(self._plan.accumulate):
            asked = time.perf_counter()
            self._activity.enter("data")
            batch = next(batches)
            waited += time.perf_counter() - asked
            self._activity.enter("forward")
            with (
                randomness.micro_batch(self._seed, step, micro, self._env.rank),
                self._reduce_only_last(micro),
            ):
                with reduced_precision(self._env.device, self._precision):
                    output: LossOutput = self._model(batch)
                self._activity.enter("backward")
                # Bounded by the loss itself, not by the number of targets; undone in _scale.
                (output.loss / self._plan.batch_size).backward()  # type: ignore[no-untyped-call]
            totals.add(output)
        self._activity.enter("reduce")
        metrics, count, stop = totals.reduce(self._env, self._stop_asked())
        self._activity.enter("update")
        grad_norm = self._scale(count)
        lr = self._plan.lr * self._schedule.factor(progress)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.objective.after_step(progress)
        seconds = {"step": time.perf_counter() - began, "data": waited}
        self._activity.end_step()
        return StepOutput(step, metrics, grad_norm, lr, self._plan.batch_size, seconds, stop=stop)

    def _reduce_only_last(self, micro: int) -> contextlib.AbstractContextManager[None]:
        model = self._model
        if isinstance(model, DistributedDataParallel) and micro < self._plan.accumulate - 1:
            return model.no_sync()
        return contextlib.nullcontext()

    def _scale(self, count: Tensor) -> Tensor:
        """Divide the gradient by the global count, clip it, and return its norm before clipping.

        DDP has averaged over the ranks and the losses were divided by the batch size, so the
        gradient of the mean is ``world_size * batch_size / count`` times what is there.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        factor = (self._env.world_size * self._plan.batch_size / count).to(torch.float32)
        norm = torch.nn.utils.get_total_norm(gradients) * factor
        if self._clip_norm is not None:
            factor = factor * (self._clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return live tensors by global name: the objective's and the optimizer's."""
        state = {f"objective.{name}": t for name, t in self.objective.state_dict().items()}
        for name, parameter in self._named:
            for key, value in self._optimizer.state[parameter].items():
                state[f"optimizer.{name}.{key}"] = value
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy `state` into the live tensors; the names must be the same on both sides."""
        own = self.state_dict()
        if own.keys() != state.keys():
            names = sorted(own.keys() ^ state.keys())
            raise ValueError(f"the states differ in {len(names)} names, the first is {names[0]}")
        with torch.no_grad():
            for name, value in state.items():
                if own[name] is not value:
                    own[name].copy_(value)


def _replicated(objective: Objective, device: torch.device) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # torch 2.13 renames the argument; 2.11 does not know the new name.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            objective,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


class _Totals:
    """Sums and counts of one step: the loss first, then the metrics in a fixed order."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self._names = ("loss", *names)
        self._device = device
        self._sums: dict[str, list[Tensor]] = {name: [] for name in self._names}
        self._counts: dict[str, list[Tensor]] = {name: [] for name in self._names}

    def add(self, output: LossOutput) -> None:
        one = torch.ones((), device=self._device)
        self._put("loss", output.loss, one if output.count is None else output.count)
        for name, (total, count) in output.metrics.items():
            self._put(name, total, count)

    def _put(self, name: str, total: Tensor, count: Tensor) -> None:
        self._sums[name].append(total.detach().to(torch.float64))
        self._counts[name].append(count.detach().to(torch.float64))

    def reduce(self, env: DistEnv, stop: bool) -> tuple[Mapping[str, Tensor], Tensor, bool]:
        """Return the divided metrics, the loss's count and whether a rank is to stop."""
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        asked = torch.full_like(zero, float(stop))
        table = torch.stack(
            [
                torch.stack([*(sum(column[name], zero) for name in self._names), asked])
                for column in (self._sums, self._counts)
            ]
        )
        sums, counts = all_reduce_sum(table, env)
        # A metric that no micro-batch reported is 0 / 0: not a number, and so not logged.
        means = sums[:-1] / counts[:-1]
        return dict(zip(self._names, means.unbind(), strict=True)), counts[0], bool(sums[-1] > 0)
