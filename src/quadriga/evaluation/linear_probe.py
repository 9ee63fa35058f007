"""Linear probe: one linear classifier on frozen features, the standard protocol of MAE.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022), appendix A.1: the
features are standardised (batch normalisation without affine parameters), and a linear layer is
trained with soft-max cross-entropy, without weight decay, on a cosine schedule. Two things
differ, both because the features are extracted once: the statistics are those of the whole
training split, and every image is seen in its evaluation crop only. The learning rate is chosen
among a few on a part of the *training* split that is held out; then the head is trained on all
of it.
"""

from __future__ import annotations

from typing import Annotated, final

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from quadriga.contracts import EvaluationContext, EvaluationResult, Evaluator, EvaluatorConfig
from quadriga.distributed.collectives import broadcast_value
from quadriga.errors import UserError
from quadriga.evaluation.accuracy import beside_random, percentages, reported_ranks, top_hits
from quadriga.evaluation.linear_heads import PREDICT_CHUNK, Heads, fit_heads
from quadriga.evaluation.parts.features import Encoded, FeatureBank, check_features, feature_bank
from quadriga.randomness import fold, shuffled

EPSILON = 1e-6
"""Added to the variance, as in the batch normalisation of MAE's probe."""


@final
class LinearProbeConfig(EvaluatorConfig):
    """A linear classifier trained on frozen features."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.01, 0.03, 0.1, 0.3, 1.0), min_length=1
    )
    """Peak learning rates that are tried, for the gradient averaged over a batch."""
    epochs: int = Field(90, ge=1)
    """Passes over the training features."""
    batch_size: int = Field(512, ge=1)
    """Features per step."""
    holdout: float = Field(0.1, gt=0, lt=1)
    """Share of the training split on which the learning rate is chosen."""

    def build(self) -> LinearProbe:
        """Make the evaluator."""
        return LinearProbe(self)


@final
class LinearProbe(Evaluator):
    """Top-1 and, above five classes, top-5 accuracy of the test split in percent."""

    def __init__(self, config: LinearProbeConfig) -> None:
        """Take the numbers of the protocol."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that there are an encoder and labels.

        Raises:
            UserError: There are not.
        """
        check_features(context, "linear_probe")

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Probe the trained and the random encoder.

        Raises:
            UserError: No encoder, no labels, or fewer than two training samples.
        """
        bank = feature_bank(context, "linear_probe")
        if len(bank.trained.train.labels) < 2:
            raise UserError(
                "linear_probe needs at least 2 training images, to hold some out, but there is"
                " 1; use more, or leave linear_probe out"
            )
        # One rank trains, so that all report the same digits whatever their hardware.
        result = self._result(bank, context) if context.env.is_main else None
        shared = broadcast_value(result, context.env)
        if shared is None:
            raise RuntimeError("rank 0 sent no result of the linear probe")
        return shared

    def _result(self, bank: FeatureBank, context: EvaluationContext) -> EvaluationResult:
        trained, chosen = self._probe(bank.trained, bank.classes, context, "linear probe")
        random, chosen_random = self._probe(
            bank.random, bank.classes, context, "linear probe, random encoder"
        )
        return EvaluationResult(
            protocol="linear_probe",
            numbers=beside_random(trained, random),
            details={
                "learning_rate": chosen,
                "learning_rate_random": chosen_random,
                "learning_rates": list(self.config.learning_rates),
                "epochs": self.config.epochs,
                "batch_size": self.config.batch_size,
                "holdout": self.config.holdout,
                "train_samples": len(bank.trained.train.labels),
                "test_samples": len(bank.trained.test.labels),
                "classes": bank.classes,
                "width": bank.trained.train.values.shape[1],
            },
        )

    def _probe(
        self, encoded: Encoded, classes: int, context: EvaluationContext, what: str
    ) -> tuple[dict[str, float], float]:
        """Return the test accuracy of the head and the learning rate that was chosen for it."""
        device = context.env.device
        train = encoded.train.values.to(device)
        labels = encoded.train.labels.to(device)
        mean, scale = statistics_of(train)
        train = (train - mean).mul_(scale)
        epochs = self.config.epochs
        kept, held = split_holdout(
            len(labels), self.config.holdout, fold(context.seed, "linear probe", "hold out")
        )
        kept, held = kept.to(device), held.to(device)

        def fit(rates: tuple[float, ...], rows: Tensor | slice, done: int) -> Heads:
            return fit_heads(
                train[rows],
                labels[rows],
                classes=classes,
                learning_rates=rates,
                epochs=epochs,
                batch_size=self.config.batch_size,
                key=fold(context.seed, "linear probe", "order"),
                after_epoch=lambda e: context.report_progress(what, done + e, 2 * epochs),
            )

        sweep = fit(self.config.learning_rates, kept, 0)
        won = head_hits(sweep, train[held], labels[held], (1,))[:, 0]
        # argmax is the first of equals: the smallest learning rate when they are listed upwards.
        chosen = self.config.learning_rates[int(np.argmax(won.cpu().numpy()))]
        head = fit((chosen,), slice(None), epochs)
        test = (encoded.test.values.to(device) - mean).mul_(scale)
        ranks = reported_ranks(classes)
        hits = head_hits(head, test, encoded.test.labels.to(device), ranks)[0]
        return percentages(hits, len(test), ranks), chosen


def statistics_of(
    features: Float[Tensor, "samples width"],
) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
    """Return the mean of each feature and 1 / sqrt(variance + EPSILON), the biased variance."""
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    return mean, (variance + EPSILON).rsqrt()


def split_holdout(
    samples: int, share: float, key: int
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Cut ``range(samples)`` at random into what is trained on and what is held out.

    Args:
        samples: At least 2.
        share: Share that is held out; at least one sample is, and at least one is not.
        key: Key of the choice.

    Returns:
        int64 indices, each list in ascending order.
    """
    count = min(max(1, round(samples * share)), samples - 1)
    order = shuffled(np.arange(samples), samples, key)
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return torch.from_numpy(kept), torch.from_numpy(held)


def head_hits(
    heads: Heads,
    features: Float[Tensor, "samples width"],
    labels: Int[Tensor, " samples"],
    ranks: tuple[int, ...],
) -> Int[Tensor, "heads ranks"]:
    """Count for each head the samples whose class is among its k highest scores.

    Args:
        heads: The classifiers.
        features: Standardised features.
        labels: int64 classes, on the same device.
        ranks: The values of k.
    """
    hits = torch.zeros(heads.count, len(ranks), dtype=torch.int64, device=features.device)
    for start in range(0, len(features), PREDICT_CHUNK):
        chunk = slice(start, start + PREDICT_CHUNK)
        scores = heads.scores(features[chunk])
        per_head = [top_hits(scores[:, i], labels[chunk], ranks) for i in range(heads.count)]
        hits += torch.stack(per_head)
    return hits
