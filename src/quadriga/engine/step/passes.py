"""The forward and backward passes of one optimizer step on one rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor

from quadriga import randomness
from quadriga.contracts import LossOutput, MicroBatch, Objective, PooledObjective, Rows, Tallies
from quadriga.distributed.collectives import all_reduce_sum
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.slots import Slots
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.precision import LossScale, reduced_precision
from quadriga.engine.step.sharding import Layout
from quadriga.engine.step.sums import MetricSums


@final
class Passes:
    """Accumulates in the parameters' gradients the sum over a step's micro-batches and all ranks.

    If the loss is one sum over targets, micro-batches are processed one at a time, and `factor`
    divides the sum afterwards by the number of targets. If the loss has several parts, or is
    pooled over the step, the denominators are computed before the first backward pass.
    """

    def __init__(
        self,
        objective: Objective,
        layout: Layout,
        config: RunConfig,
        plan: RunPlan,
        env: DistEnv,
        slots: Slots,
        scale: LossScale,
        phase_timer: PhaseTimer,
    ) -> None:
        """Store the arguments.

        Args:
            objective: The method, already placed on the ranks.
            layout: How the ranks hold it.
            config: The run.
            plan: The plan of its steps.
            env: This process among the run's.
            slots: Positions of this rank's rows in a step.
            scale: The loss scale.
            phase_timer: Records this rank's phases.
        """
        self._objective, self._layout, self._config, self._plan = objective, layout, config, plan
        self._env, self._slots, self._scale, self._phase_timer = env, slots, scale, phase_timer
        self._parts = plan.world_size * plan.accumulate
        self._tallies = [m for m in objective.modules() if isinstance(m, Tallies) and m.keeps_tally]
        self._sums: dict[str, Tensor] = {}
        self._rows: list[Rows] = []
        self._divisor: float | None = None

    def run(self, batches: Iterator[MicroBatch], step: int, metrics: MetricSums) -> None:
        """Run the passes of one step.

        Args:
            batches: Yields this rank's micro-batches.
            step: The step.
            metrics: Accumulates losses and metrics.
        """
        shapes = self._objective.sum_shapes()
        self._sums = {n: torch.zeros(s, device=self._env.device) for n, s in shapes.items()}
        self._rows, self._divisor = [], None
        self._layout.begin_step()
        if isinstance(self._objective, PooledObjective):
            self._pooled(self._objective, batches, step, metrics)
        elif len(self._objective.term_names) > 1:
            self._counted(batches, step, metrics)
        else:
            self._added(batches, step, metrics)

    def factor(self, targets: Tensor) -> Tensor:
        """Return the factor that makes the summed gradients those of the step's loss.

        Args:
            targets: Scalar, the number of targets of the step over all ranks.

        Returns:
            float32 scalar.
        """
        if self._divisor is None:
            return torch.full((), 1 / self._scale.value, device=self._env.device)
        return (self._divisor / (targets * self._scale.value)).to(torch.float32)

    def collect(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the sums and the rows of the step over all ranks, and apply the tallies.

        Every rank calls it, only for steps whose gradient is applied.
        """
        tallies = [module.take_tally() for module in self._tallies]
        if tallies:
            flat = all_reduce_sum(torch.cat([tally.flatten() for tally in tallies]), self._env)
            parts = torch.split(flat, [tally.numel() for tally in tallies])
            for module, tally, part in zip(self._tallies, tallies, parts, strict=True):
                module.apply_tally(part.view_as(tally))
        sums = {name: all_reduce_sum(total, self._env) for name, total in self._sums.items()}
        names = self._rows[0] if self._rows else {}
        own = {name: torch.cat([rows[name] for rows in self._rows]) for name in names}
        return sums, {name: self._slots.gather(rows) for name, rows in own.items()}

    def forget(self) -> None:
        """Drop the tallies of a step whose gradient is not applied."""
        for module in self._tallies:
            module.take_tally()

    def _added(self, batches: Iterator[MicroBatch], step: int, metrics: MetricSums) -> None:
        for micro in range(self._plan.accumulate):
            batch = self._next(batches)
            with self._pass(step, micro):
                self._phase_timer.enter("forward")
                output = self._forward(batch)
                # Divide by the samples for now, because the targets are known only later.
                is_mean = next(iter(output.terms.values())).targets is None
                self._divisor = self._parts if is_mean else self._plan.batch_size
                divisors = dict.fromkeys(output.terms, self._divisor)
                self._backward(output, divisors, micro == self._plan.accumulate - 1)
            self._keep(output, metrics)

    def _counted(self, batches: Iterator[MicroBatch], step: int, metrics: MetricSums) -> None:
        counted, again = [], []
        for _ in range(self._plan.accumulate):
            batch = self._next(batches)
            counted.append(self._objective.counts(batch))
            again.append(batch.again)
        zero = torch.zeros((), dtype=torch.float64, device=self._env.device)
        divisors = self._over_ranks(
            {n: sum((c[n] for c in counted if n in c), zero) for n in self._objective.term_names}
        )
        for micro, make in enumerate(again):
            own = batch if len(again) == 1 else make()
            parts = list(own.in_turn()) if self._layout.is_joint else [own]
            with self._pass(step, micro):
                for part in parts:
                    self._phase_timer.enter("forward")
                    output = self._forward(part)
                    is_last = micro == len(again) - 1 and part is parts[-1]
                    self._backward(output, divisors, is_last)
                    if part is own:
                        self._keep(output, metrics)

    def _pooled(
        self,
        objective: PooledObjective,
        batches: Iterator[MicroBatch],
        step: int,
        metrics: MetricSums,
    ) -> None:
        count = self._plan.accumulate
        is_one, again, embedded, given = count == 1, [], [], []
        for micro in range(count):
            batch = self._next(batches)
            again.append(batch.again)
            self._phase_timer.enter("forward")
            with self._pass(step, micro):
                with self._computing(is_first=True), torch.set_grad_enabled(is_one):
                    embedded.append(objective.embed(batch))
                with self._computing(is_first=False), torch.no_grad():
                    given.append(objective.targets(batch))
        rows, targets = _joined(embedded), _joined(given)
        if not is_one:
            rows = {name: tensor.requires_grad_() for name, tensor in rows.items()}
        with self._pass(step, count):
            with self._computing(is_first=True):
                output = objective.combine(rows, targets, self._slots)
            counts = {n: _targets_or_one(t.targets, t.total) for n, t in output.terms.items()}
            self._backward(output, self._over_ranks(counts), is_last=is_one)
        self._keep(output, metrics)
        if is_one:
            return
        first = 0
        for micro, make in enumerate(again):
            with self._pass(step, micro):
                self._phase_timer.enter("forward")
                with self._computing(is_first=False):
                    second = objective.embed(make())
                last = first + len(next(iter(second.values())))
                tensors = [second[name] for name in rows]
                grads = [_grad(leaf)[first:last] for leaf in rows.values()]
                self._phase_timer.enter("backward")
                is_last = micro == count - 1
                with self._layout.backward(is_last, objective.combined_parts):
                    torch.autograd.backward(tensors, grads)
                first = last

    def _next(self, batches: Iterator[MicroBatch]) -> MicroBatch:
        """Return the next micro-batch. A second pass rebuilds it, so it need not stay in memory."""
        self._phase_timer.enter("data")
        return next(batches)

    def _forward(self, batch: MicroBatch) -> LossOutput:
        with self._computing(is_first=True):
            output: LossOutput = self._objective(batch)
        return output

    def _backward(
        self, output: LossOutput, divisors: Mapping[str, Tensor | float], is_last: bool
    ) -> None:
        self._phase_timer.enter("backward")
        parts = [
            term.total * term.weight / (divisors[name] / self._scale.value)
            for name, term in output.terms.items()
        ]
        with self._layout.backward(is_last):
            sum(parts[1:], parts[0]).backward()  # type: ignore[no-untyped-call]

    def _over_ranks(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return part of the loss -> targets of the step, float32; 1 where there are none."""
        table = torch.stack([count.detach().to(torch.float64) for count in counts.values()])
        reduced = all_reduce_sum(table, self._env)
        safe = torch.where(reduced > 0, reduced, 1.0).to(torch.float32)
        return dict(zip(counts, safe.unbind(), strict=True))

    def _keep(self, output: LossOutput, metrics: MetricSums) -> None:
        metrics.add(output)
        for name, value in output.sums.items():
            self._sums[name] += value.detach()
        if output.rows:
            self._rows.append(output.rows)

    def _pass(self, step: int, micro: int) -> contextlib.AbstractContextManager[None]:
        """Return the scope of random draws, which are the same in a repeated pass."""
        return randomness.micro_batch(self._config.seed, step, micro, self._env.rank)

    @contextlib.contextmanager
    def _computing(self, is_first: bool) -> Iterator[None]:
        """Return the context of a forward pass: its precision, and whether tallies accumulate."""
        for module in self._tallies:
            module.is_tallying = is_first
        try:
            with reduced_precision(self._env.device, self._config.train):
                yield
        finally:
            for module in self._tallies:
                module.is_tallying = False


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _targets_or_one(targets: Tensor | None, total: Tensor) -> Tensor:
    return torch.ones_like(total) if targets is None else targets


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
