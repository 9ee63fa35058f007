"""Linear probe: one linear classifier on frozen features, the standard protocol of MAE.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022), appendix A.1: the
features are standardised (batch normalisation without affine parameters), and a linear layer is
trained with soft-max cross-entropy, without weight decay, on a cosine schedule. Two things
differ, both because the features are extracted once: the statistics are those of the whole
training split, and every image is seen in its evaluation crop only. The learning rate is chosen
among a few on a held-out part of the *training* split; then the head is trained on the whole split.

One head per learning rate is trained, all on the same batches: their weights are columns of one
matrix, and a step is two matrix products, whatever the number of heads. The gradient of soft-max
cross-entropy is explicit: ``features^T (softmax(logits) - onehot(labels)) / batch``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, final

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from quadriga.contracts import EvaluationContext, EvaluationResult, Evaluator, EvaluatorConfig
from quadriga.distributed.collectives import broadcast_value, slice_of
from quadriga.errors import UserError
from quadriga.evaluation.parts.features import (
    Encoded,
    FeatureBank,
    beside_random,
    check_features,
    feature_bank,
    percentages,
    reported_ranks,
    top_hits,
    warn_of_few_images,
)
from quadriga.evaluation.parts.per_class import per_class, predictions_of
from quadriga.evaluation.parts.tokens import Selection, Tokens
from quadriga.randomness import fold, shuffled

MOMENTUM = 0.9
PREDICT_CHUNK = 16384
"""Number of samples whose scores are in memory at once."""


@dataclass(frozen=True)
class Heads:
    """Linear classifiers whose weights are columns of one matrix."""

    weight: Float[Tensor, "width heads_x_classes"]
    bias: Float[Tensor, " heads_x_classes"]
    classes: int

    @property
    def count(self) -> int:
        """Number of heads."""
        return len(self.bias) // self.classes

    def scores(
        self, features: Float[Tensor, "samples width"]
    ) -> Float[Tensor, "samples heads classes"]:
        """Return the logits of every head."""
        logits = torch.addmm(self.bias, features, self.weight)
        return logits.view(len(features), self.count, self.classes)


def cosine(step: int, total: int) -> float:
    """Return the learning-rate factor of a step, from 1 towards 0 (Loshchilov and Hutter, 2017).

    Args:
        step: Number of the step, from 0.
        total: Number of steps.
    """
    return 0.5 * (1.0 + math.cos(math.pi * step / total))


def fit_heads(
    features: Float[Tensor, "samples width"],
    labels: Int[Tensor, " samples"],
    *,
    classes: int,
    learning_rates: Sequence[float],
    epochs: int,
    batch_size: int,
    key: int,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> Heads:
    """Train one head per learning rate by SGD with momentum and a cosine schedule.

    The problem is convex, so the heads start at zero; only the order of the samples is random.

    Args:
        features: Standardised float32 features.
        labels: int64 classes, on the same device.
        classes: Number of classes.
        learning_rates: Peak learning rate of each head, for a gradient averaged over the batch.
        epochs: Passes over the samples.
        batch_size: Samples per step at most; an epoch is divided into nearly equal steps.
        key: Key of the samples' order, which differs in each epoch.
        after_epoch: Called after each epoch with the number of finished epochs.

    Returns:
        The trained heads; one that diverged has non-finite weights.
    """
    samples, width = features.shape
    columns = len(learning_rates) * classes
    weight, bias = features.new_zeros(width, columns), features.new_zeros(columns)
    heads = Heads(weight, bias, classes)
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    rates = features.new_tensor(learning_rates).repeat_interleave(classes)
    steps = math.ceil(samples / batch_size)
    minus_one = features.new_full((1, 1, 1), -1.0)
    for epoch in range(epochs):
        order = torch.from_numpy(shuffled(np.arange(samples), samples, fold(key, epoch)))
        order = order.to(features.device)
        for step in range(steps):
            share = slice_of(samples, step, steps)
            rows = order[share.start : share.stop]
            batch, target = features.index_select(0, rows), labels.index_select(0, rows)
            error = heads.scores(batch).softmax(dim=2)
            target = target[:, None, None].expand(-1, heads.count, 1)
            error.scatter_add_(2, target, minus_one.expand_as(target))
            error = error.view(len(rows), columns).div_(len(rows))
            weight_velocity.mul_(MOMENTUM).addmm_(batch.T, error)
            bias_velocity.mul_(MOMENTUM).add_(error.sum(0))
            factor = cosine(epoch * steps + step, epochs * steps)
            weight.addcmul_(weight_velocity, rates, value=-factor)
            bias.addcmul_(bias_velocity, rates, value=-factor)
        after_epoch(epoch + 1)
    return heads


EPSILON = 1e-6
"""Added to the variance, as in the batch normalisation of MAE's probe."""


@final
class LinearProbeConfig(EvaluatorConfig):
    """A linear classifier trained on frozen features."""

    tokens: Tokens = "pooled"
    """Which features: the method's own, or of a vision transformer the class token or the mean of
    the patches."""
    layers: int = Field(1, ge=1, le=10_000)
    """Last blocks of a vision transformer whose features, each after the final norm, are
    concatenated; 4 is usual for small ones (Caron et al., 2021, DINO, appendix F)."""
    learning_rates: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] = Field(
        (0.01, 0.03, 0.1, 0.3, 1.0), min_length=1
    )
    """Peak learning rates to choose from, for the gradient averaged over a batch."""
    epochs: int = Field(90, ge=1, le=1_000_000)
    """Passes over the training features."""
    batch_size: int = Field(512, ge=1, le=2**30)
    """Features per step."""
    holdout: float = Field(0.1, gt=0, lt=1)
    """Fraction of the training split on which the learning rate is chosen."""

    def build(self) -> LinearProbe:
        """Make the evaluator."""
        return LinearProbe(self)


@final
class LinearProbe(Evaluator):
    """Top-1 and, above five classes, top-5 accuracy of the test split in percent."""

    def __init__(self, config: LinearProbeConfig) -> None:
        """Keep the config."""
        self.config = config
        self.selection = Selection(config.tokens, config.layers)

    def check(self, context: EvaluationContext) -> None:
        """Check that there are an encoder with such features, and labels of two classes.

        Raises:
            UserError: The encoder, its features or the labels are missing.
        """
        check_features(context, "linear_probe")
        self.selection.of(context.objective, "linear_probe")
        warn_of_few_images(context, "linear_probe", needed=2)

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Probe the trained and the random encoder.

        Raises:
            UserError: No encoder, no labels, or fewer than two training samples.
        """
        bank = feature_bank(context, "linear_probe", self.selection)
        if len(bank.trained.train.labels) < 2:
            raise UserError(
                "linear_probe needs at least 2 training images, to hold some out, but there is"
                " 1; use more, or leave linear_probe out"
            )
        # Only rank 0 trains, so that all ranks report the same digits on any hardware.
        result = self._result(bank, context) if context.env.is_main else None
        shared = broadcast_value(result, context.env)
        if shared is None:
            raise RuntimeError("rank 0 sent no result of the linear probe")
        return shared

    def _result(self, bank: FeatureBank, context: EvaluationContext) -> EvaluationResult:
        trained, chosen, predicted = self._probe(
            bank.trained, bank.classes, context, "linear probe"
        )
        random, chosen_random, _ = self._probe(
            bank.random, bank.classes, context, "linear probe, random encoder"
        )
        return EvaluationResult(
            protocol="linear_probe",
            metrics=beside_random(trained, random),
            details={
                "tokens": self.config.tokens,
                "layers": self.config.layers,
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
                **per_class(bank.trained.test.labels, predicted, bank.names),
            },
        )

    def _probe(
        self, encoded: Encoded, classes: int, context: EvaluationContext, what: str
    ) -> tuple[dict[str, float], float, Tensor]:
        """Return the test accuracies in percent, the chosen learning rate and the predictions."""
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
        # argmax returns the first of equals: the smallest learning rate if they are ascending.
        chosen = self.config.learning_rates[int(np.argmax(won.cpu().numpy()))]
        head = fit((chosen,), slice(None), epochs)
        test = (encoded.test.values.to(device) - mean).mul_(scale)
        ranks = reported_ranks(classes)
        hits = head_hits(head, test, encoded.test.labels.to(device), ranks)[0]
        chunks = torch.split(test, PREDICT_CHUNK)
        predicted = torch.cat([predictions_of(head.scores(chunk)[:, 0]) for chunk in chunks])
        return percentages(hits, len(test), ranks), chosen, predicted.cpu()


def statistics_of(
    features: Float[Tensor, "samples width"],
) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
    """Return the mean of each feature and 1 / sqrt(variance + EPSILON), the biased variance."""
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    return mean, (variance + EPSILON).rsqrt()


def split_holdout(
    samples: int, share: float, key: int
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Divide ``range(samples)`` at random into a part for training and a held-out part.

    Args:
        samples: Number of samples, at least 2.
        share: Fraction that is held out; at least one sample is in each part.
        key: Key of the random choice.

    Returns:
        int64 indices of both parts, each in ascending order.
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
