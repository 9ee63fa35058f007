"""What was right of each class, and what was taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CLASSES_MOST = 1000
"""Classes that are listed one by one."""
CONFUSION_MOST = 100
"""Classes that a whole confusion matrix is kept of."""


def predictions_of(scores: Float[Tensor, "samples classes"]) -> Int[Tensor, " samples"]:
    """Return the class with the highest score, -1 where that is not finite."""
    best, index = scores.max(dim=1)
    return torch.where(best.isfinite(), index, -1)


def per_class(
    labels: Int[Tensor, " samples"], predictions: Int[Tensor, " samples"], names: Sequence[str]
) -> dict[str, Any]:
    """Return ``{"per_class": ...}`` for a result's details; empty above `CLASSES_MOST` classes.

    It has the ``names``, and for each class the number of ``samples`` and of ``correct`` ones. Up
    to `CONFUSION_MOST` classes, ``confusion`` has a row for each class: how many of its samples
    were taken for each class; those without a prediction are in none.

    Args:
        labels: The right classes.
        predictions: The predicted ones, -1 for none.
        names: Class names in the order of the labels; there may be fewer than classes.
    """
    count = max(len(names), int(labels.max()) + 1, int(predictions.max()) + 1)
    if not 0 < count <= CLASSES_MOST:
        return {}
    known = {
        "names": [*names, *(str(number) for number in range(len(names), count))],
        "samples": torch.bincount(labels, minlength=count).tolist(),
        "correct": torch.bincount(labels[predictions == labels], minlength=count).tolist(),
    }
    if count <= CONFUSION_MOST:
        made = predictions >= 0
        pairs = labels[made] * count + predictions[made]
        known["confusion"] = torch.bincount(pairs, minlength=count**2).view(count, count).tolist()
    return {"per_class": known}
