"""Numbers that say whether embeddings have collapsed to a point."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from quadriga.distributed.slots import Slots

DEVIATION = {"embedding_deviation": (0.1, math.inf)}
"""`Objective.healthy` of a method with this metric."""


def entropy_range(prototypes: int) -> dict[str, tuple[float, float]]:
    """Return `Objective.healthy` of a method with the metric ``teacher_entropy``.

    Outputs collapse to one prototype, whose entropy is 0, or to all alike, whose entropy is the
    logarithm of their number (Caron et al., 2021, arXiv:2104.14294, section 5.3).
    """
    return {"teacher_entropy": (0.01 * math.log(prototypes), 0.998 * math.log(prototypes))}


@torch.no_grad()
def embedding_deviation(rows: Float[Tensor, "rows width"], slots: Slots) -> Float[Tensor, ""]:
    """Return the deviation of a step's embeddings; see `deviation`.

    Args:
        rows: This rank's embeddings, of any length.
        slots: Sums over the ranks; every rank calls this function.
    """
    unit = functional.normalize(rows.float(), dim=1)
    return deviation(slots.sum(unit.sum(dim=0)), slots.total)


def deviation(total: Float[Tensor, " width"], count: int | Tensor) -> Float[Tensor, ""]:
    """Return the deviation of embeddings of unit length, from 0 to 1.

    ``sqrt(sum_j var_j)`` with the variance of each feature j: 0 where all embeddings are one point,
    near 1 where they are spread over the sphere. It is the square root of the width times the
    deviation in Chen and He, "Exploring Simple Siamese Representation Learning" (2021,
    arXiv:2011.10566, figure 2).

    Args:
        total: Their sum.
        count: Their number.
    """
    # Each has length 1, so the squares of all features are 1 in the mean over the embeddings.
    return (1.0 - (total / count).square().sum()).clamp_min(0.0).sqrt()
