"""What pictures of features need: images of a data set, and principal components."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from quadriga.contracts import Dataset, EvaluationContext
from quadriga.data.reading.loader import sequential
from quadriga.distributed.environment import DistEnv
from quadriga.evaluation.reconstruction import Pixels, pixel_range, to_pixels
from quadriga.randomness import fold, shuffled


def chosen_rows(total: int, count: int, context: EvaluationContext) -> npt.NDArray[np.int64]:
    """Return at most `count` of ``range(total)``, ascending: the same ones at every evaluation."""
    positions = np.arange(min(count, total))
    return np.sort(shuffled(positions, total, fold(context.seed, "pictures")))


def read_images(
    context: EvaluationContext, dataset: Dataset, rows: npt.NDArray[np.int64]
) -> Float[Tensor, "images channels height width"]:
    """Return the normalised images of some rows of a data set, without those that are unreadable.

    Args:
        context: Gives the transform and the device; this rank reads all of them.
        dataset: The records.
        rows: int64 (images,), in any order and also more than once.
    """
    alone = DistEnv(0, 1, 0, 1, context.env.device)
    batches = sequential(
        dataset, context.transform, rows, batch_size=32, env=alone, workers=0, warn=context.warn
    )
    return torch.cat([batch["image"] for batch in batches])


def shown(images: Float[Tensor, "images 3 height width"], context: EvaluationContext) -> Pixels:
    """Return normalised images as uint8 (images, height, width, 3)."""
    return to_pixels(images, *pixel_range(context.transform, images))


def principal_components(
    values: Float[Tensor, "samples width"], count: int
) -> tuple[Float[Tensor, "samples components"], Float[Tensor, ""]]:
    """Project centred vectors on the directions of the greatest variance, the greatest first.

    The sign of a direction makes its largest entry positive.

    Args:
        values: The vectors.
        count: Number of directions, at most the width.

    Returns:
        float64 coordinates, and the share of the variance that they hold (NaN where there is none).
    """
    centred = values.double() - values.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    directions = directions.flip(1)[:, :count]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    share = variances.flip(0)[:count].sum() / variances.sum()
    return centred @ (directions * largest.sign()), share
