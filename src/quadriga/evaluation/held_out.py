"""The objective's own loss and metrics on samples that training does not see."""

from __future__ import annotations

import math
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from quadriga import randomness
from quadriga.contracts import (
    EvaluationContext,
    EvaluationResult,
    Evaluator,
    EvaluatorConfig,
    LossOutput,
)
from quadriga.data.reading.loader import sequential
from quadriga.distributed.collectives import all_reduce_sum, slice_of
from quadriga.evaluation.parts.features import equal_calls, evaluation_mode


@final
class HeldOutConfig(EvaluatorConfig):
    """Loss and metrics of the objective on the test split, such as a masked-LM loss."""

    batch_size: int = Field(32, ge=1, le=2**30)
    """Samples per batch; if an objective returns plain means, the result is their mean."""

    def build(self) -> HeldOut:
        """Make the evaluator."""
        return HeldOut(self)


@final
class HeldOut(Evaluator):
    """Means over the test split: sums and counts of all batches, divided once.

    An objective's draws per sample (masks) depend on the sample alone, so every evaluation uses the
    same masks. Dropout is off.
    """

    def __init__(self, config: HeldOutConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Open the test split.

        Raises:
            UserError: The split is missing.
        """
        context.data("test")

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Evaluate the whole test split; any number of ranks returns the same metrics."""
        objective, env, size = context.objective, context.env, self.config.batch_size
        dataset = context.data("test")
        names = (*objective.term_names, *objective.metric_names)
        batches = math.ceil(len(dataset) / size)
        own = slice_of(batches, env.rank, env.world_size)
        samples = range(own.start * size, min(own.stop * size, len(dataset)))
        # One row per batch, zero on all ranks but one: the order of summation does not depend on
        # the number of ranks.
        table = torch.zeros(batches, 2, len(names), dtype=torch.float64)
        read = sequential(
            dataset,
            context.transform,
            samples,
            batch_size=size,
            env=env,
            workers=context.workers,
            warn=context.warn,
            batches=equal_calls(context, batches, 1),
        )
        with evaluation_mode(objective), torch.no_grad():
            for number, batch in enumerate(read, start=own.start):
                with randomness.micro_batch(context.seed, 0, number, 0):
                    output = objective(batch)
                if number < own.stop:
                    table[number] = _row(output, names)
                done = (number + 1 - own.start) * size
                context.report_progress("held out", min(done, len(samples)), len(samples))
        sums, counts = all_reduce_sum(table.to(env.device), env).cpu().sum(dim=0)
        metrics = {
            name: float(total / count)
            for name, total, count in zip(names, sums, counts, strict=True)
            if count > 0
        }
        return EvaluationResult("held_out", metrics, details={"samples": len(dataset)})


def _row(output: LossOutput, names: tuple[str, ...]) -> Tensor:
    one = torch.ones((), dtype=torch.float64)
    terms = output.terms.items()
    pairs = {n: (t.total, one if t.targets is None else t.targets) for n, t in terms}
    pairs |= dict(output.metrics)
    row = torch.zeros(2, len(names), dtype=torch.float64)
    for place, name in enumerate(names):
        if name in pairs:
            row[0, place], row[1, place] = (float(value) for value in pairs[name])
    return row
