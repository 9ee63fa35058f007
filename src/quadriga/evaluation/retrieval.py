"""Retrieval: each test image looks for the others of its class, by cosine similarity.

Recall at k is the share of images with one of their class among the k most similar (Musgrave et
al., "A Metric Learning Reality Check", ECCV 2020). Average precision is the mean, over the other
images of the class, of the share of its class among all images that are at least as near in the
ranking; the mean of it over the images is mAP. Images that are alone in their class ask nothing.
"""

from __future__ import annotations

from typing import Annotated, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from quadriga.contracts import EvaluationContext, EvaluationResult, Evaluator, EvaluatorConfig
from quadriga.distributed.collectives import all_reduce_sum, slice_of
from quadriga.errors import UserError
from quadriga.evaluation.parts.features import (
    Features,
    beside_random,
    check_features,
    class_counts,
    feature_bank,
)

SIMILARITIES = 2**24
"""Similarities that are sorted at once: 64 MiB, and 128 of their order."""


@final
class RetrievalConfig(EvaluatorConfig):
    """Retrieval of the images of the same class."""

    ranks: tuple[Annotated[int, Field(ge=1, le=2**20)], ...] = Field((1, 5, 10), min_length=1)
    """The k of each recall at k."""

    def build(self) -> Retrieval:
        """Make the evaluator."""
        return Retrieval(self)


@final
class Retrieval(Evaluator):
    """``recall_k`` for each k and ``mean_average_precision`` of the test split in percent."""

    def __init__(self, config: RetrievalConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that there are an encoder, labels, and two test images of a class.

        Raises:
            UserError: One of these is missing.
        """
        check_features(context, "retrieval")
        counts = class_counts(context.data("test"))
        if counts is not None:
            _check_pairs(int(counts.max()))

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Rank the test split for each of its images, by the trained and the random encoder.

        Raises:
            UserError: No encoder, no labels, or no two test images are of one class.
        """
        bank = feature_bank(context, "retrieval")
        labels = bank.trained.test.labels
        others = torch.bincount(labels)[labels] - 1
        _check_pairs(int(others.max()) + 1)
        return EvaluationResult(
            protocol="retrieval",
            metrics=beside_random(
                self._retrieve(bank.trained.test, context, "retrieval"),
                self._retrieve(bank.random.test, context, "retrieval, random encoder"),
            ),
            details={
                "ranks": list(self.config.ranks),
                "test_samples": len(labels),
                "queries": int((others > 0).sum()),
                "classes": bank.classes,
            },
        )

    def _retrieve(
        self, features: Features, context: EvaluationContext, what: str
    ) -> dict[str, float]:
        env, total = context.env, len(features.labels)
        unit = functional.normalize(features.values.to(env.device), dim=1)
        labels = features.labels.to(env.device)
        mine = slice_of(total, env.rank, env.world_size)
        ranks = self.config.ranks
        sums = torch.zeros(len(ranks) + 2, dtype=torch.float64, device=env.device)
        chunk = max(1, SIMILARITIES // total)
        for start in range(mine.start, mine.stop, chunk):
            rows = torch.arange(start, min(start + chunk, mine.stop), device=env.device)
            is_right = ranking(unit, labels, rows)
            asks = is_right.any(dim=1)
            recalls = [is_right[:, :rank].any(dim=1) for rank in ranks]
            precision = average_precision(is_right)[asks]
            counted = torch.stack([part.sum().double() for part in (*recalls, precision, asks)])
            sums += counted
            context.report_progress(what, int(rows[-1]) + 1 - mine.start, len(mine))
        *found, asked = all_reduce_sum(sums, env).tolist()
        names = [*(f"recall_{rank}" for rank in ranks), "mean_average_precision"]
        return {name: 100.0 * value / asked for name, value in zip(names, found, strict=True)}


def ranking(
    unit: Float[Tensor, "images width"],
    labels: Int[Tensor, " images"],
    rows: Int[Tensor, " queries"],
) -> Tensor:
    """Return bool (queries, images - 1): whether each other image, nearest first, is of the class.

    Args:
        unit: Vectors of unit length.
        labels: int64 classes.
        rows: int64 rows of the images that ask; each is left out of its own ranking.
    """
    similarity = unit[rows] @ unit.T
    similarity[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
    order = similarity.argsort(dim=1, descending=True)[:, :-1]
    return labels[order] == labels[rows][:, None]


def average_precision(is_right: Tensor) -> Float[Tensor, " queries"]:
    """Return the average precision of each ranking, NaN for one without a right image.

    Args:
        is_right: bool (queries, images), the nearest first.
    """
    found = is_right.cumsum(dim=1, dtype=torch.float64)
    place = torch.arange(1, is_right.shape[1] + 1, device=is_right.device)
    return (found / place * is_right).sum(dim=1) / found[:, -1]


def _check_pairs(largest: int) -> None:
    if largest < 2:
        raise UserError(
            "retrieval needs two test images of a class, but each has at most 1; use more test "
            "images, or leave retrieval out of evaluation.protocols"
        )
