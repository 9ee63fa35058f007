"""Low-shot classification: logistic regression on a few labelled images per class.

The protocol of Assran et al., "Masked Siamese Networks for Label-Efficient Learning" (ECCV 2022),
section 5.1: the features are frozen, n images of each class are drawn several times, and mean and
deviation over the draws are given. The features are standardised with the statistics of the whole
training split, which need no labels. The classifier W, b minimises

    sum over the drawn images of cross_entropy(W x + b, label) + penalty / 2 * |W|^2.
"""

from __future__ import annotations

import warnings
from typing import Annotated, final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from quadriga.contracts import EvaluationContext, EvaluationResult, Evaluator, EvaluatorConfig
from quadriga.distributed.collectives import from_main
from quadriga.errors import UserError
from quadriga.evaluation.linear_probe import statistics_of
from quadriga.evaluation.parts.features import (
    Encoded,
    beside_random,
    check_features,
    class_counts,
    feature_bank,
)
from quadriga.randomness import fold, shuffled

MAX_ITERATIONS = 1000


@final
class LowShotConfig(EvaluatorConfig):
    """Logistic regression on a few labelled images per class."""

    shots: tuple[Annotated[int, Field(ge=1, le=2**20)], ...] = Field((1, 2, 5, 10), min_length=1)
    """Numbers of images per class."""
    draws: int = Field(5, ge=1, le=10_000)
    """How often the images are drawn."""
    penalty: float = Field(1.0, gt=0, le=1e12)
    """Weight of half the squared weights, beside the sum of the images' cross-entropies."""

    def build(self) -> LowShot:
        """Make the evaluator."""
        return LowShot(self)


@final
class LowShot(Evaluator):
    """For each n, ``top1_of_n`` in percent of the test split, and its ``deviation_of_n``."""

    def __init__(self, config: LowShotConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that there are an encoder, labels of two classes and enough images of each.

        Raises:
            UserError: One of these is missing.
        """
        check_features(context, "low_shot")
        counts = class_counts(context.data("train"))
        if counts is not None:
            self._check_counts(counts, context.data("train").classes)

    def _check_counts(self, counts: npt.NDArray[np.int64], names: tuple[str, ...]) -> None:
        # A class without training images cannot be found; it does not make the others fewer.
        scarcest = int(np.where(counts > 0, counts, counts.max()).argmin())
        if counts[scarcest] < max(self.config.shots):
            raise UserError(
                f"low_shot.shots must be at most the training images of a class, but is "
                f"{max(self.config.shots)} and {names[scarcest]} has {counts[scarcest]}; lower it"
            )

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Classify the test split with each draw, by the trained and the random encoder.

        Raises:
            UserError: No encoder, no labels, or a class has fewer images than are to be drawn.
        """
        bank = feature_bank(context, "low_shot")
        labels = bank.trained.train.labels.numpy()
        self._check_counts(np.bincount(labels, minlength=bank.classes), bank.names)
        return from_main(
            lambda: EvaluationResult(
                protocol="low_shot",
                metrics=beside_random(
                    self._classify(bank.trained, context, "low-shot"),
                    self._classify(bank.random, context, "low-shot, random encoder"),
                ),
                details={
                    **self.config.model_dump(mode="json"),
                    "train_samples": len(labels),
                    "test_samples": len(bank.trained.test.labels),
                    "classes": bank.classes,
                },
            ),
            context.env,
        )

    def _classify(
        self, encoded: Encoded, context: EvaluationContext, what: str
    ) -> dict[str, float]:
        """Return the mean and the deviation over the draws of the accuracy in percent."""
        mean, scale = statistics_of(encoded.train.values)
        train = ((encoded.train.values - mean) * scale).double().numpy()
        test = ((encoded.test.values - mean) * scale).double().numpy()
        labels, truth = encoded.train.labels.numpy(), encoded.test.labels.numpy()
        found: dict[str, float] = {}
        draws, total = self.config.draws, len(self.config.shots) * self.config.draws
        for number, shots in enumerate(self.config.shots):
            right = []
            for draw in range(draws):
                rows = drawn_rows(labels, shots, fold(context.seed, "low shot", draw))
                predicted = predict(train[rows], labels[rows], test, self.config.penalty)
                right.append(100.0 * float(np.mean(predicted == truth)))
                context.report_progress(what, number * draws + draw + 1, total)
            found[f"top1_of_{shots}"] = float(np.mean(right))
            found[f"deviation_of_{shots}"] = float(np.std(right))
        return found


def drawn_rows(labels: npt.NDArray[np.int64], shots: int, key: int) -> npt.NDArray[np.int64]:
    """Return the int64 rows of `shots` images of each class, drawn without replacement.

    With the same key fewer images are among more of them.
    """
    drawn = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        drawn.append(rows[shuffled(np.arange(len(rows)), len(rows), fold(key, int(label)))][:shots])
    return np.concatenate(drawn)


def predict(
    train: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    test: npt.NDArray[np.float64],
    penalty: float,
) -> npt.NDArray[np.int64]:
    """Return the class that logistic regression gives to each test vector.

    Args:
        train: float64 (images, width).
        labels: int64 (images,).
        test: float64 (test images, width).
        penalty: See the config.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / penalty, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # As good as it gets: a hard problem is a low accuracy and no failure.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, labels)
    predicted: npt.NDArray[np.int64] = model.predict(test)
    return predicted
