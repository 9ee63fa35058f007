"""Numbers that say whether embeddings have collapsed to a point."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from quadriga.distributed.slots import Slots

DEVIATION = {"embedding_deviation": (0.1, float("inf"))}
"""`Objective.healthy` of a method with this metric."""


@torch.no_grad()
def embedding_deviation(rows: Float[Tensor, "rows width"], slots: Slots) -> Float[Tensor, ""]:
    """Return the deviation of embeddings of unit length over the step, from 0 to 1.

    ``sqrt(sum_j var_j)`` with the variance of each feature j over all rows of the step: 0 where all
    embeddings are one point, near 1 where they are spread over the sphere. It is the square root of
    the width times the deviation in Chen and He, "Exploring Simple Siamese Representation Learning"
    (2021, arXiv:2011.10566, figure 2).

    Args:
        rows: This rank's embeddings, of any length.
        slots: Sums over the ranks; every rank calls this function.
    """
    unit = functional.normalize(rows.float(), dim=1)
    moments = slots.sum(torch.cat([unit.sum(dim=0), unit.new_full((1,), len(unit))]))
    mean = moments[:-1] / moments[-1]
    # Each row has length 1, so the mean square over the rows is 1 in all.
    return (1.0 - mean.square().sum()).clamp_min(0.0).sqrt()
