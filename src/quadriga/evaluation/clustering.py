"""Clustering: whether k-means on the features finds the classes, which it is not shown.

The features of the test split, of unit length, are divided into as many clusters as there are
classes. Three measures compare clusters and classes: normalised mutual information
``2 I(U; V) / (H(U) + H(V))``, the adjusted Rand index (Hubert and Arabie, 1985), and the accuracy
when each class is given the cluster that makes it greatest (Kuhn's Hungarian method, 1955).
"""

from __future__ import annotations

import warnings
from typing import final

import numpy as np
import numpy.typing as npt
from pydantic import Field
from torch.nn import functional

from quadriga.contracts import EvaluationContext, EvaluationResult, Evaluator, EvaluatorConfig
from quadriga.distributed.collectives import from_main
from quadriga.evaluation.parts.features import (
    Features,
    beside_random,
    check_features,
    feature_bank,
)
from quadriga.randomness import fold


@final
class ClusteringConfig(EvaluatorConfig):
    """K-means of the features, compared with the classes."""

    restarts: int = Field(10, ge=1, le=100_000)
    """Runs of k-means from other centres, of which the tightest clusters count."""

    def build(self) -> Clustering:
        """Make the evaluator."""
        return Clustering(self)


@final
class Clustering(Evaluator):
    """``nmi`` and ``adjusted_rand``, at most 1, and ``accuracy`` in percent, of the test split."""

    def __init__(self, config: ClusteringConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that there are an encoder, and labels of two classes.

        Raises:
            UserError: The encoder or the labels are missing.
        """
        check_features(context, "clustering")

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Cluster the features of the trained and of the random encoder.

        Raises:
            UserError: No encoder, or no labels.
        """
        bank = feature_bank(context, "clustering")
        labels = bank.trained.test.labels.numpy()
        return from_main(
            lambda: EvaluationResult(
                protocol="clustering",
                metrics=beside_random(
                    agreement(labels, self._clusters(bank.trained.test, context)),
                    agreement(labels, self._clusters(bank.random.test, context)),
                ),
                details={
                    "restarts": self.config.restarts,
                    "images": len(labels),
                    "clusters": len(np.unique(labels)),
                },
            ),
            context.env,
        )

    def _clusters(self, features: Features, context: EvaluationContext) -> npt.NDArray[np.int32]:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        model = KMeans(
            len(np.unique(features.labels.numpy())),
            n_init=self.config.restarts,
            random_state=fold(context.seed, "clustering") % 2**32,
        )
        with warnings.catch_warnings():
            # An encoder that has collapsed has fewer distinct features than clusters.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(functional.normalize(features.values, dim=1).numpy())
        found: npt.NDArray[np.int32] = model.labels_
        return found


def agreement(labels: npt.NDArray[np.int64], clusters: npt.NDArray[np.int32]) -> dict[str, float]:
    """Return the three measures of how well clusters agree with classes.

    Args:
        labels: int64 class of each image.
        clusters: int32 cluster of each image, from 0.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(labels, clusters)
    right = table[linear_sum_assignment(table, maximize=True)].sum()
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "adjusted_rand": float(adjusted_rand_score(labels, clusters)),
        "accuracy": 100.0 * float(right) / len(labels),
    }
