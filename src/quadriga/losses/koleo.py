"""The Kozachenko-Leonenko regulariser (Sablayrolles et al., ICLR 2019, arXiv:1806.03198)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from quadriga.losses.cross_entropy import types_as_written

EPS = 1e-8
"""Added to differences, distances and lengths, as in the implementation of DINOv2."""


def koleo(rows: Float[Tensor, "rows width"], group: int) -> Float[Tensor, ""]:
    """Return the mean over the rows of ``-log(distance to the nearest row of its group)``.

    Rows are normalised to unit length first. All is computed in float32, also under autocast: the
    distance of close rows would be 0 in a narrow dtype.

    Args:
        rows: In the order in which they are grouped.
        group: Consecutive rows among which the nearest is looked for; rows that are left over join
            the last group.

    Returns:
        0 for less than two rows, which have no distance.
    """
    with types_as_written(rows.device.type):
        rows = functional.normalize(rows.float(), dim=1, eps=EPS)
        count = len(rows)
        if count < 2:
            return rows.sum() * 0.0
        last = count - max(0, count // group - 1) * group
        parts = [rows[: count - last].view(-1, group, rows.shape[1]), rows[None, count - last :]]
        return sum((_of_groups(part) for part in parts), rows.new_zeros(())) / count


def _of_groups(groups: Float[Tensor, "groups rows width"]) -> Float[Tensor, ""]:
    """Return the sum over all rows."""
    with torch.no_grad():
        similarities = groups @ groups.transpose(1, 2)
        # Below any cosine, so that no row is its own neighbour.
        similarities.diagonal(dim1=1, dim2=2).fill_(-2.0)
        nearest = similarities.argmax(dim=2)[:, :, None].expand_as(groups)
    distances = functional.pairwise_distance(groups, groups.gather(1, nearest), eps=EPS)
    return -(distances + EPS).log().sum()
