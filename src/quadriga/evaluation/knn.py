"""Weighted nearest neighbours on frozen features: no training, no hyper-parameter to tune.

The protocol of Wu et al., "Unsupervised Feature Learning via Non-parametric Instance
Discrimination" (CVPR 2018), section 3.4: the `neighbours` training samples with the highest
cosine similarity s vote for their class with weight exp(s / temperature).
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from quadriga.contracts import EvaluationContext, EvaluationResult, Evaluator, EvaluatorConfig
from quadriga.distributed.collectives import all_reduce_sum, slice_of
from quadriga.errors import UserError
from quadriga.evaluation.parts.features import (
    Encoded,
    beside_random,
    check_features,
    feature_bank,
    percentages,
    reported_ranks,
    top_hits,
    warn_of_few_images,
)
from quadriga.evaluation.parts.per_class import per_class, predictions_of

QUERY_CHUNK = 512
BANK_CHUNK = 65536
"""Similarities of at most QUERY_CHUNK x BANK_CHUNK are held at once: 128 MiB."""


@final
class KNNConfig(EvaluatorConfig):
    """Weighted k-nearest-neighbour classification of frozen features."""

    neighbours: int = Field(20, ge=1, le=2**30)
    """Number of training samples that vote."""
    temperature: float = Field(0.07, gt=0, le=1e3)
    """Softness of the vote: the weight is exp(cosine similarity / temperature)."""

    def build(self) -> KNN:
        """Make the evaluator."""
        return KNN(self)


@final
class KNN(Evaluator):
    """Top-1 and, above five classes, top-5 accuracy of the test split in percent."""

    def __init__(self, config: KNNConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that there are an encoder, labels of two classes and enough neighbours.

        Raises:
            UserError: One of these is missing.
        """
        check_features(context, "knn")
        warn_of_few_images(context, "knn", self.config.neighbours)
        self._check_neighbours(len(context.data("train")))

    def _check_neighbours(self, samples: int) -> None:
        if samples < self.config.neighbours:
            raise UserError(
                f"knn.neighbours must be at most the number of training images ({samples}), but"
                f" is {self.config.neighbours}; lower it"
            )

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Classify the test split with the trained and with the random encoder.

        Raises:
            UserError: No encoder, no labels, or fewer training samples than neighbours.
        """
        bank = feature_bank(context, "knn")
        samples = len(bank.trained.train.labels)
        self._check_neighbours(samples)
        trained, predicted = self._classify(bank.trained, bank.classes, context, "knn")
        random, _ = self._classify(bank.random, bank.classes, context, "knn, random encoder")
        return EvaluationResult(
            protocol="knn",
            metrics=beside_random(trained, random),
            details={
                "neighbours": self.config.neighbours,
                "temperature": self.config.temperature,
                "train_samples": samples,
                "test_samples": len(bank.trained.test.labels),
                "classes": bank.classes,
                "width": bank.trained.train.values.shape[1],
                **per_class(bank.trained.test.labels, predicted, bank.names),
            },
        )

    def _classify(
        self, encoded: Encoded, classes: int, context: EvaluationContext, what: str
    ) -> tuple[dict[str, float], Tensor]:
        """Return the accuracies in percent, and the predicted class of each test sample."""
        env, total = context.env, len(encoded.test.labels)
        ranks = reported_ranks(classes)
        reference = functional.normalize(encoded.train.values.to(env.device), dim=1)
        reference_labels = encoded.train.labels.to(env.device)
        mine = slice_of(total, env.rank, env.world_size)
        hits = torch.zeros(len(ranks), dtype=torch.int64, device=env.device)
        predicted = torch.zeros(total, dtype=torch.int64, device=env.device)
        for start in range(mine.start, mine.stop, QUERY_CHUNK):
            stop = min(start + QUERY_CHUNK, mine.stop)
            queries = functional.normalize(encoded.test.values[start:stop].to(env.device), dim=1)
            similarity, index = nearest_neighbours(queries, reference, self.config.neighbours)
            scores = votes(similarity, reference_labels[index], classes, self.config.temperature)
            hits += top_hits(scores, encoded.test.labels[start:stop].to(env.device), ranks)
            predicted[start:stop] = predictions_of(scores)
            context.report_progress(what, stop - mine.start, len(mine))
        accuracies = percentages(all_reduce_sum(hits, env), total, ranks)
        return accuracies, all_reduce_sum(predicted, env).cpu()


def nearest_neighbours(
    queries: Float[Tensor, "queries width"],
    bank: Float[Tensor, "samples width"],
    count: int,
    chunk: int = BANK_CHUNK,
) -> tuple[Float[Tensor, "queries count"], Int[Tensor, "queries count"]]:
    """Find the rows of `bank` with the highest inner products, chunk by chunk.

    Args:
        queries: Vectors of unit length.
        bank: Vectors of unit length, at least `count` of them.
        count: Number of neighbours per query.
        chunk: Rows of the bank that are compared at once; bounds the memory.

    Returns:
        The similarities (queries, count), highest first, and the rows' int64 indices.
    """
    best = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), chunk):
        similarity = queries @ bank[start : start + chunk].T
        values, rows = similarity.topk(min(count, similarity.shape[1]), dim=1)
        best, index = torch.cat([best, values], 1), torch.cat([index, rows + start], 1)
        best, kept = best.topk(min(count, best.shape[1]), dim=1)
        index = index.gather(1, kept)
    return best, index


def votes(
    similarity: Float[Tensor, "queries count"],
    labels: Int[Tensor, "queries count"],
    classes: int,
    temperature: float,
) -> Float[Tensor, "queries classes"]:
    """Sum exp(similarity / temperature) by class, up to one positive factor per query.

    Args:
        similarity: Similarities of the neighbours, highest first.
        labels: int64 classes of the neighbours.
        classes: Number of classes.
        temperature: Softness of the vote.

    Returns:
        Scores; -inf where a class has no vote.
    """
    # Relative to the nearest neighbour, so that a low temperature cannot overflow; the order of
    # the classes is the same.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    scores = similarity.new_zeros(len(similarity), classes).scatter_add_(1, labels, weights)
    voted = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels, True)
    return scores.masked_fill_(~voted, -torch.inf)
