"""The update of a step, which may overlap with the passes of the following steps.

An update follows a step's backward passes: the sum of gradients over the replicas and, for tied
parameters, over their stages; the norm over all stages; the check, clipping and the optimizer.
Under 2bw no pass needs the result before the first forward pass of the step after next, so a
thread makes the update meanwhile, on process groups of its own. The result is the same without the
thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quadriga.contracts import Objective, Progress
from quadriga.distributed.environment import DistEnv
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.sums import MetricSums
from quadriga.engine.step.update import Update, Verdict
from quadriga.optim.parts.groups import partial_optimizer
from quadriga.pipeline.config import pipeline_of
from quadriga.pipeline.runtime.partition import Groups
from quadriga.pipeline.runtime.versions import FlatGradients, WeightVersions


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step's update, the same on every rank."""

    verdict: Verdict
    metrics: Mapping[str, Tensor]
    lr: float


@final
class Updates:
    """Makes the updates of one stage, in order."""

    def __init__(
        self,
        versions: WeightVersions,
        everything: Mapping[str, nn.Parameter],
        ties: Mapping[str, tuple[int, ...]],
        config: RunConfig,
        plan: RunPlan,
        groups: Groups,
        env: DistEnv,
        objective: Objective,
        skipped_steps: Container[int],
    ) -> None:
        """Make the optimizer, the gradient buffers and the error-feedback state.

        Args:
            versions: This stage's weights.
            everything: All trainable parameters of the objective by name, on any device.
            ties: Parameters that lie in several stages -> those stages, ascending.
            config: The run's config.
            plan: The run's plan.
            groups: This rank's groups.
            env: This rank.
            objective: The whole objective, on any device; its terms and metrics are reported.
            skipped_steps: Steps that make no update.
        """
        self._versions, self._pipeline, self._plan = versions, pipeline_of(config), plan
        self._groups, self._env, self._objective = groups, env, objective
        own = versions.parameters
        self._tied = {name: stages for name, stages in ties.items() if name in own}
        self._first_holder = [
            name for name in own if ties.get(name, (groups.stage,))[0] == groups.stage
        ]
        optimizer = partial_optimizer(config.optim, everything, own)
        self.update = Update(list(own.items()), optimizer, config, plan, skipped_steps)
        self.feedback: dict[str, Tensor] = {}
        if versions.count == 2 and self._pipeline.error_feedback:
            self.feedback = {name: torch.zeros_like(p) for name, p in own.items()}
        self.buffers = [FlatGradients(own) for _ in range(versions.count)]
        self.has_feedback = False
        is_deferred = versions.count == 2 and self._pipeline.deferred_update
        self._thread = ThreadPoolExecutor(1, "update", self._join) if is_deferred else None
        self._pending: dict[int, Future[Outcome] | Outcome] = {}
        # One stream for all updates: the allocator reuses a stream's freed memory only there.
        self._side: torch.cuda.Stream | None = None

    def _join(self) -> None:
        if self._env.device.type == "cuda":
            torch.cuda.set_device(self._env.device)
            self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def new_sums(self) -> MetricSums:
        """Return empty metric sums for a new step."""
        return MetricSums(self._objective, self._env.device)

    def begin(self, step: int, sums: MetricSums, asked_to_stop: bool, asked_to_save: bool) -> None:
        """Make a step's update, or start it on the thread; collective, in the order of steps.

        Args:
            step: The step.
            sums: Metric sums of this rank's micro-batches.
            asked_to_stop: Whether this rank received a stop signal.
            asked_to_save: Whether this rank asks for a checkpoint after the step.
        """
        asked = (asked_to_stop, asked_to_save)
        if self._thread is None:
            self._pending[step] = self._update(step, sums, asked)
            return
        if self._env.device.type != "cuda":
            self._pending[step] = self._thread.submit(self._update, step, sums, asked)
            return
        passes = torch.cuda.current_stream()
        ready = passes.record_event()

        def beside() -> Outcome:
            side = self._side
            assert side is not None
            with torch.cuda.stream(side):
                side.wait_event(ready)
                outcome = self._update(step, sums, asked)
                side.synchronize()
            for tensor in (*outcome.metrics.values(), outcome.verdict.norm):
                tensor.record_stream(passes)  # read there: keep its memory until that is done
            return outcome

        self._pending[step] = self._thread.submit(beside)

    def wait(self, step: int) -> Outcome:
        """Wait for a step's update and return its outcome."""
        pending = self._pending.pop(step)
        return pending.result() if isinstance(pending, Future) else pending

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    @torch.no_grad()
    def _update(self, step: int, sums: MetricSums, asked: tuple[bool, bool]) -> Outcome:
        gradients = self.buffers[step % self._versions.count]
        if self._groups.replicas is not None:
            dist.all_reduce(gradients.flat, group=self._groups.replicas)
        for name, stages in self._tied.items():
            dist.all_reduce(gradients.views[name], group=self._groups.tied[stages])
        squares = self._square_sum(gradients)
        reduced = sums.reduce(
            self._env, *asked, (squares / self._plan.world_size,), self._groups.world
        )
        # The losses were divided by the number of micro-batches before their backward passes.
        factor = (self._plan.accumulate / reduced.targets).to(torch.float32)
        verdict = self.update.check_step(step, reduced, (reduced.more[0],), factor)
        progress = self.update.progress(step)
        self._versions.advance(step)
        if verdict.is_applied:
            gradients.flat.mul_(verdict.factors[0])
            self._step(gradients, progress, is_late=step > self._pipeline.flushed_steps)
        else:
            self.update.skipped += 1
        return Outcome(verdict, reduced.metrics, self.update.lr(progress))

    def _square_sum(self, gradients: FlatGradients) -> Tensor:
        """Return the squared norm of this stage's gradients, a scalar.

        A tied parameter counts on the first stage that holds it.
        """
        counted = [gradients.views[name] for name in self._first_holder]
        if not counted:
            return torch.zeros((), device=self._env.device)
        return torch.stack(torch._foreach_norm(counted)).square().sum()

    def _step(self, gradients: FlatGradients, progress: Progress, is_late: bool) -> None:
        own = self._versions.parameters
        for name, parameter in own.items():
            parameter.grad = gradients.views[name]
        with self._corrected(is_late):
            self.update.step(progress)
        for parameter in own.values():
            parameter.grad = None
        self.update.update_ema(progress)

    @contextlib.contextmanager
    def _corrected(self, is_late: bool) -> Iterator[None]:
        """Return a context that applies error feedback to the optimizer step made inside it.

        With u(t) the optimizer's whole update: ``W -= u(t) + c * (u(t) - u(t - 1))`` (error
        feedback for a delay of one step, arXiv:2606.30634). The first update, and updates whose
        gradient is not late, are not corrected.
        """
        if not self.feedback:
            yield
            return
        parameters = [p.data for p in self._versions.parameters.values()]
        before = [p.clone() for p in parameters]
        yield
        update = torch._foreach_sub(before, parameters)
        last = list(self.feedback.values())
        if is_late and self.has_feedback:
            strength = self._pipeline.error_feedback
            torch._foreach_add_(parameters, torch._foreach_sub(update, last), alpha=-strength)
        torch._foreach_copy_(last, update)
        self.has_feedback = True
