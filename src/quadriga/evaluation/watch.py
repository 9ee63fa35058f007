"""Numbers that tell during a run whether an encoder learns: cheap, and on a slice of the data.

Nearest neighbours on some held-out images, the effective rank of the features, and their deviation.
They are for watching a run and for ending it early; results come from the other protocols.
"""

from __future__ import annotations

import time
from typing import final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from quadriga.contracts import (
    EvaluationContext,
    EvaluationResult,
    Evaluator,
    EvaluatorConfig,
)
from quadriga.data.parts.subsets import Subset
from quadriga.evaluation.knn import nearest_neighbours, votes
from quadriga.evaluation.parts.features import check_features, extract, frozen_encoder

TEMPERATURE = 0.07
"""Softness of the vote, as in the protocol knn."""


@final
class WatchConfig(EvaluatorConfig):
    """Nearest neighbours, effective rank and deviation of the features of some images."""

    every_epochs: float | None = Field(1.0, gt=0, le=1e6)
    """Epochs between two looks."""
    bank: int = Field(2048, ge=2, le=2**24)
    """Training images that vote, and whose features' rank and deviation are measured."""
    queries: int = Field(1024, ge=1, le=2**24)
    """Test images that are classified."""
    neighbours: int = Field(20, ge=1, le=2**20)
    """Number of images that vote."""

    def build(self) -> Watch:
        """Make the evaluator."""
        return Watch(self)


@final
class Watch(Evaluator):
    """Measures ``top1`` in percent, ``rank``, ``deviation`` and its own cost in ``seconds``."""

    def __init__(self, config: WatchConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that there are an encoder and labels.

        Raises:
            UserError: One of these is missing.
        """
        check_features(context, "watch")

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Encode the images; the same ones at every look.

        Raises:
            UserError: No encoder, or no labels.
        """
        check_features(context, "watch")
        began = time.perf_counter()
        config = self.config
        train = Subset(context.data("train"), config.bank, context.seed)
        test = Subset(context.data("test"), config.queries, context.seed)
        with frozen_encoder(context.objective) as encoder:
            (bank,) = extract([encoder], train, context, "watch: training images")
            (queries,) = extract([encoder], test, context, "watch: test images")
        unit = functional.normalize(bank.values, dim=1)
        similarity, index = nearest_neighbours(
            functional.normalize(queries.values, dim=1), unit, min(config.neighbours, len(unit))
        )
        classes = len(context.data("train").classes)
        scores = votes(similarity, bank.labels[index], classes, TEMPERATURE)
        right = (scores.argmax(dim=1) == queries.labels).float().mean()
        return EvaluationResult(
            protocol="watch",
            metrics={
                "top1": 100 * float(right),
                "rank": float(effective_rank(bank.values)),
                "deviation": float((1 - unit.mean(dim=0).square().sum()).clamp_min(0).sqrt()),
                "seconds": time.perf_counter() - began,
            },
            details={"train_samples": len(unit), "test_samples": len(queries.labels)},
        )


def effective_rank(features: Float[Tensor, "samples width"]) -> Float[Tensor, ""]:
    """Return RankMe (Garrido et al., 2023, arXiv:2210.02885, eq. 1), from 1 to the width.

    ``exp(-sum_k p_k log p_k)`` with ``p_k = s_k / sum_j s_j + 1e-7`` and the singular values s of
    the features.
    """
    singular = torch.linalg.svdvals(features.double())
    shares = singular / singular.sum().clamp_min(1e-300) + 1e-7
    return torch.exp(-(shares * shares.log()).sum())
