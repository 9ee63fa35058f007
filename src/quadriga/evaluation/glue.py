"""The official metrics of a GLUE task on its development sets, and predictions of its test sets.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding" (ICLR 2019, arXiv:1804.07461), table 1. scikit-learn and scipy compute the metrics;
every value is multiplied by 100, as in the paper.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, final, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from quadriga.contracts import (
    Batch,
    Dataset,
    EvaluationContext,
    EvaluationResult,
    Evaluator,
    EvaluatorConfig,
)
from quadriga.data.parts.subsets import Subset
from quadriga.data.reading.loader import sequential
from quadriga.data.text.glue.dataset import GlueDataset
from quadriga.data.text.glue.tasks import GlueTask
from quadriga.distributed.collectives import all_reduce_sum, from_main, slice_of
from quadriga.errors import UserError
from quadriga.evaluation.parts.features import equal_calls, evaluation_mode

Metrics = dict[str, float]


def metrics_of(
    names: Sequence[str],
    predictions: npt.NDArray[np.float64],
    labels: npt.NDArray[np.float64],
) -> Metrics:
    """Return metrics of a task, times 100.

    An undefined value (a correlation of constants) is 0.

    Args:
        names: Any of mcc (Matthews' correlation), accuracy, f1 (of class 1), pearson, spearman.
        predictions: float64 (samples,): class indices, or the values of a regression.
        labels: float64 (samples,): the true classes or values.
    """
    # Imported here: they take two seconds, in every rank and every command.
    from scipy import stats
    from sklearn import metrics

    def classes(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        return values.astype(np.int64)

    def one(name: str) -> float:
        if name == "accuracy":
            return float(metrics.accuracy_score(classes(labels), classes(predictions)))
        if name == "f1":
            return float(metrics.f1_score(classes(labels), classes(predictions), zero_division=0.0))
        if name == "mcc":
            return float(metrics.matthews_corrcoef(classes(labels), classes(predictions)))
        correlation = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name]
        return float(correlation(predictions, labels)[0])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*constant.*|.*single label.*")
        values = {name: one(name) for name in names}
    return {name: 100.0 * value if math.isfinite(value) else 0.0 for name, value in values.items()}


def score_of(metrics: Mapping[str, float]) -> float:
    """Return a task's score: the mean of its metrics over all its development sets."""
    return sum(metrics.values()) / len(metrics)


def majority_share(labels: npt.NDArray[np.float64]) -> float:
    """Return the accuracy of always predicting the most frequent label, times 100."""
    counts = np.unique(labels, return_counts=True)[1]
    return 100.0 * float(counts.max()) / len(labels)


@runtime_checkable
class Scorer(Protocol):
    """An objective that scores texts."""

    outputs: int
    """Number of classes, or 1 for a regression."""
    regression: bool
    """Whether the output is a real value instead of class scores."""

    def scores(self, batch: Batch) -> Tensor:
        """Return float (batch, outputs): one score per class, or the predicted value."""
        ...


@final
class GlueConfig(EvaluatorConfig):
    """The metrics of the run's GLUE task."""

    batch_size: int = Field(64, ge=1, le=2**30)
    """Samples per batch."""
    predictions: bool = True
    """Whether the test sets are predicted, where their files are: the files that the benchmark's
    server takes are written to the evaluation's folder."""

    def build(self) -> Glue:
        """Make the evaluator."""
        return Glue(self)


@final
class Glue(Evaluator):
    """The task's metrics; ``score`` is their mean, over both development sets of MNLI."""

    def __init__(self, config: GlueConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that the objective scores texts and has the outputs that the task needs.

        Raises:
            UserError: The objective does not, or the data are not those of a GLUE task.
        """
        _subject(context)

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Evaluate the development sets and predict the test sets.

        The samples form the same batches on any number of ranks, so the metrics do not depend on
        the number of ranks.

        Raises:
            UserError: As `check`.
        """
        scorer, dataset = _subject(context)
        task = dataset.task
        metrics: dict[str, float] = {}
        details: dict[str, Any] = {"task": task.name}
        with evaluation_mode(cast(nn.Module, scorer)):
            for part, samples in _development_sets(context):
                suffix = f"_{part}" if part not in ("", task.parts[0]) else ""
                labels = _whole(samples).labels_of(samples)
                what = f"glue, {task.name}{suffix}"
                predictions = self._predict(scorer, samples, context, what)
                found = metrics_of(task.metrics, predictions, labels)
                metrics |= {f"{name}{suffix}": value for name, value in found.items()}
                details[f"samples{suffix}"] = len(samples)
                if not task.regression:
                    details[f"most_frequent_class{suffix}"] = majority_share(labels)
                if _whole(samples).skipped.rows:
                    details[f"rows_without_sample{suffix}"] = _whole(samples).skipped.rows
            if self.config.predictions:
                files = self._write_predictions(scorer, context, dataset)
                details |= {"predictions": files} if files else {}
        metrics["score"] = score_of(metrics)
        return EvaluationResult(protocol="glue", metrics=metrics, details=details)

    def _predict(
        self, scorer: Scorer, dataset: Dataset, context: EvaluationContext, what: str
    ) -> npt.NDArray[np.float64]:
        """Return float64 (samples,): predicted classes or values of all samples, on every rank."""
        env, size, total = context.env, self.config.batch_size, len(dataset)
        whole = -(-total // size)
        batches = slice_of(whole, env.rank, env.world_size)
        mine = range(batches.start * size, min(batches.stop * size, total))
        values = torch.zeros(total, dtype=torch.float64)
        done = 0
        for batch in sequential(
            dataset,
            context.transform,
            mine,
            batch_size=size,
            env=env,
            workers=context.workers,
            warn=context.warn,
            batches=equal_calls(context, whole, 1),
        ):
            with torch.no_grad(), context.reduced_precision():
                scores = scorer.scores(batch).float()
            answers = scores[:, 0] if scorer.regression else scores.argmax(dim=1)
            values[batch["index"].cpu()] = answers.double().cpu()
            done += len(answers)
            context.report_progress(what, done, len(mine))
        # Every value is zero on all ranks but one, so that the sum gathers exactly.
        gathered = all_reduce_sum(values.to(env.device), env).cpu()
        return gathered.numpy()

    def _write_predictions(
        self, scorer: Scorer, context: EvaluationContext, dataset: GlueDataset
    ) -> list[str]:
        """Write a file for each test set that exists; return the files' names."""
        written = []
        for part in dataset.task.parts:
            tests = dataset.sibling("test", part)
            if tests is None:
                continue
            what = f"glue, {tests.file.name} of {dataset.task.name}"
            predictions = self._predict(scorer, tests, context, what)
            path = context.output / dataset.task.submission(part)
            text = "".join(submission_lines(dataset.task, tests, predictions))
            from_main(lambda path=path, text=text: _write(path, text), context.env)  # type: ignore[misc]
            written.append(path.name)
        return written


def submission_lines(
    task: GlueTask, dataset: GlueDataset, predictions: npt.NDArray[np.float64]
) -> Iterator[str]:
    """Yield the lines of a file of predictions in the format of the benchmark's server.

    Args:
        task: The task.
        dataset: The task's test set.
        predictions: float64 (samples,): class indices, or the values of a regression.
    """
    yield "index\tprediction\n"
    for place, value in enumerate(predictions.tolist()):
        shown = f"{value:.3f}" if task.regression else task.labels[int(value)]
        yield f"{dataset.row(place).index}\t{shown}\n"


def _subject(context: EvaluationContext) -> tuple[Scorer, GlueDataset]:
    """Return the objective and the first development set.

    Raises:
        UserError: The objective scores no texts, its outputs are not those of the task, or the
            data are not those of a GLUE task.
    """
    scorer, dataset = context.objective, _whole(context.data("test"))
    if not isinstance(scorer, Scorer):
        raise UserError(
            "glue needs an objective that scores texts (objective.kind=sequence_classification), "
            f"but {type(scorer).__name__} does not; leave glue out"
        )
    task = dataset.task
    if (scorer.outputs, scorer.regression) != (task.outputs, task.regression):
        raise UserError(
            f"objective.outputs must be {task.outputs} and objective.regression "
            f"{str(task.regression).lower()} for data.task={task.name}, but they are "
            f"{scorer.outputs} and {str(scorer.regression).lower()}"
        )
    return scorer, dataset


def _whole(dataset: Dataset) -> GlueDataset:
    found = dataset.whole if isinstance(dataset, Subset) else dataset
    if not isinstance(found, GlueDataset):
        raise UserError("glue needs data.kind=glue, but the data are of another kind; leave it out")
    return found


def _development_sets(context: EvaluationContext) -> Iterator[tuple[str, Dataset]]:
    """Yield each development set of the task, or the part of it that the run evaluates."""
    own = context.data("test")
    first = _whole(own)
    yield first.part, own
    for part in first.task.parts:
        other = first.sibling("dev", part) if part != first.part else None
        if other is not None:
            is_part = isinstance(own, Subset)
            yield part, Subset(other, len(own), context.seed) if is_part else other


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; make room") from error
