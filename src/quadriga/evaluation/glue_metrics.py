"""The metrics of GLUE, by scikit-learn and scipy; every value times 100."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Numbers = dict[str, float]


def metrics_of(
    names: Sequence[str],
    predictions: npt.NDArray[np.float64],
    labels: npt.NDArray[np.float64],
) -> Numbers:
    """Return metrics of a task.

    A number that is not defined (a correlation of what is constant) is 0, as one that says nothing.

    Args:
        names: Of mcc (Matthews' correlation), accuracy, f1 (of class 1), pearson and spearman.
        predictions: (samples,): classes, or the numbers of a regression.
        labels: (samples,): what is right.
    """
    # Late: to import them takes two seconds, in every rank and every command.
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


def score_of(numbers: Mapping[str, float]) -> float:
    """Return a task's headline: the mean of its metrics, of all its development sets."""
    return sum(numbers.values()) / len(numbers)


def majority_share(labels: npt.NDArray[np.float64]) -> float:
    """Return the share of the most frequent label, times 100: what a constant answer reaches."""
    counts = np.unique(labels, return_counts=True)[1]
    return 100.0 * float(counts.max()) / len(labels)
