"""Mean and standard deviation of each channel over the images of a data set."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quadriga.contracts import Dataset, UnreadableSample
from quadriga.data.images.decode import OpenedImage
from quadriga.errors import UserError
from quadriga.randomness import fold, shuffled


class ChannelStatistics(NamedTuple):
    """Statistics of values from 0 to 1, one number for each of red, green and blue."""

    mean: tuple[float, ...]
    """Mean over the images, each of which counts the same whatever its size."""
    std: tuple[float, ...]
    """Standard deviation over the same."""
    images: int
    """Number of images that were read."""
    unreadable: int
    """Number of images that could not be."""


def channel_statistics(dataset: Dataset, most: int) -> ChannelStatistics:
    """Read images of a data set, all or a keyed sample of them.

    Args:
        dataset: One of images.
        most: Number of images that are read at most.

    Raises:
        UserError: It is one of texts, or no image can be read.
    """
    if dataset.vocabulary_size is not None:
        raise UserError(
            "data.kind must be one of images for the statistics of channels, but the data is text; "
            "take another data.kind"
        )
    sums: list[npt.NDArray[np.float64]] = []
    unreadable = 0
    chosen = np.arange(min(most, len(dataset)))
    for index in shuffled(chosen, len(dataset), fold("statistics")).tolist():
        try:
            image = OpenedImage(dataset.read(index))
            pixels = image.crop(image.whole).reshape(-1, 3)
        except UnreadableSample:
            unreadable += 1
            continue
        counts = np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)])
        sums.append(counts @ _POWERS / len(pixels))
    if not sums:
        raise UserError(
            f"data must have an image that can be read, but none of {unreadable} can be; see the "
            "message of quadriga train"
        )
    # fsum is exact: the order of the images does not matter.
    means, squares = (
        [math.fsum(values) / len(sums) for values in np.stack(sums)[:, :, power].T]
        for power in range(2)
    )
    deviations = [math.sqrt(max(0.0, s - m**2)) for m, s in zip(means, squares, strict=True)]
    return ChannelStatistics(tuple(means), tuple(deviations), len(sums), unreadable)


_LEVELS = np.arange(256) / 255
_POWERS = np.stack([_LEVELS, _LEVELS**2], axis=1)
"""float64 (256, 2): each level and its square."""
