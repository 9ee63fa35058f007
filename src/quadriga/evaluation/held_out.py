"""The objective's own loss and metrics on samples that training does not see."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
from pydantic import Field
from torch import Tensor

from quadriga import randomness
from quadriga.contracts import (
    PREDICTED,
    Batch,
    Dataset,
    EvaluationContext,
    EvaluationResult,
    Evaluator,
    EvaluatorConfig,
    LossOutput,
    Objective,
)
from quadriga.data.parts.classes import match_classes
from quadriga.data.reading.loader import sequential
from quadriga.distributed.collectives import all_reduce_sum, slice_of
from quadriga.evaluation.parts.features import equal_calls, evaluation_mode
from quadriga.evaluation.parts.per_class import per_class


@final
class HeldOutConfig(EvaluatorConfig):
    """Loss and metrics of the objective on the test split, such as a masked-LM loss."""

    batch_size: int = Field(32, ge=1, le=2**30)
    """Samples per batch; if an objective returns plain means, the result is their mean."""

    def build(self) -> HeldOut:
        """Make the evaluator."""
        return HeldOut(self)

    def check(self, objective: Objective, example: Batch) -> None:
        """Compute the objective on the example; some compare several views of each image."""
        with evaluation_mode(objective), torch.no_grad(), randomness.micro_batch(0, 0, 0, 0):
            objective(example)


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
            UserError: The split is missing, or has a class that the objective does not know.
        """
        _test_data(context)

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Evaluate the whole test split; any number of ranks returns the same metrics."""
        objective, env, size = context.objective, context.env, self.config.batch_size
        dataset = _test_data(context, context.warn)
        names = (*objective.term_names, *objective.metric_names)
        batches = math.ceil(len(dataset) / size)
        own = slice_of(batches, env.rank, env.world_size)
        samples = range(own.start * size, min(own.stop * size, len(dataset)))
        # One row per batch, zero on all ranks but one: the order of summation does not depend on
        # the number of ranks.
        table = torch.zeros(batches, 2, len(names), dtype=torch.float64)
        # The label and the predicted class of each sample, counted from 1: 0 is none.
        answers = torch.zeros(2, len(dataset), dtype=torch.int64)
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
                with (
                    randomness.micro_batch(context.seed, 0, number, 0),
                    context.reduced_precision(),
                ):
                    output = objective(batch)
                if number < own.stop:
                    table[number] = _row(output, names)
                    if PREDICTED in output.rows and "label" in batch:
                        pair = torch.stack([batch["label"], output.rows[PREDICTED]])
                        answers[:, batch["index"].cpu()] = pair.cpu() + 1
                done = (number + 1 - own.start) * size
                context.report_progress("held out", min(done, len(samples)), len(samples))
        sums, counts = all_reduce_sum(table.to(env.device), env).cpu().sum(dim=0)
        metrics = {
            name: float(total / count)
            for name, total, count in zip(names, sums, counts, strict=True)
            if count > 0
        }
        label, predicted = all_reduce_sum(answers.to(env.device), env).cpu() - 1
        answered = label >= 0
        details: dict[str, Any] = {"samples": len(dataset)}
        if bool(answered.any()):
            details |= per_class(label[answered], predicted[answered], dataset.classes)
        return EvaluationResult("held_out", metrics, details=details)


def _test_data(
    context: EvaluationContext, say: Callable[[str], None] = lambda text: None
) -> Dataset:
    """Return the test split, its labels by the names of the objective's classes."""
    return match_classes(
        context.data("test"), context.classes, "the classifier", "held_out's test images", say
    )


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
