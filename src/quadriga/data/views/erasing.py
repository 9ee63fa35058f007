"""Random erasing (Zhong et al., arXiv:1708.04896) of normalised images, on the device.

The boxes of a batch are drawn and rasterised on the device without synchronisation.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from quadriga.randomness import fold, generator, uniform_rows


class Boxes(NamedTuple):
    """One box per image: int64 (batch,) each, in pixels."""

    top: Int64[Tensor, " batch"]
    left: Int64[Tensor, " batch"]
    height: Int64[Tensor, " batch"]
    width: Int64[Tensor, " batch"]


def inside(boxes: Boxes, height: int, width: int) -> Bool[Tensor, "batch 1 {height} {width}"]:
    """Return which pixels of images of this size are inside the image's box."""
    device = boxes.top.device
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    top, left = boxes.top[:, None], boxes.left[:, None]
    in_rows = (rows >= top) & (rows < top + boxes.height[:, None])
    in_columns = (columns >= left) & (columns < left + boxes.width[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def whole(
    uniform: Float[Tensor, " batch"], bound: int | Int64[Tensor, " batch"]
) -> Int64[Tensor, " batch"]:
    """Map uniforms of 24 bits in [0, 1) to int64 integers in [0, bound)."""
    return (uniform * bound).to(torch.int64)


Mode = Literal["pixel", "rand", "const"]
_ATTEMPTS = 10
_GATE, _NOISE = fold("erase"), fold("erase", "noise")
_WINDOWS, _STRIDE = 1 << 18, 4


@dataclass(frozen=True)
class Erasing:
    """The parameters of random erasing."""

    probability: float
    """Probability that an image has erased boxes."""
    mode: Mode
    """Fill of a box: pixel, noise for each pixel; rand, one random colour; const, the mean (0)."""
    count: int
    """Largest number of boxes; the number is uniform from 1 on."""
    area: tuple[float, float]
    """Smallest and largest fraction of the image's area that all boxes cover, before rounding."""
    aspect: tuple[float, float]
    """Smallest and largest height / width."""


def erase(
    images: Float[Tensor, "batch channels height width"],
    key: Int64[Tensor, " batch"],
    how: Erasing,
) -> Float[Tensor, "batch channels height width"]:
    """Return the images with boxes erased, by draws from each sample's own key.

    The noise is standard normal. It is read from a table of about a million numbers at a position
    that is drawn from the key: drawing a number for each pixel would cost as much as a block of a
    model, and would not give the same numbers on every device.

    Args:
        images: Normalised images.
        key: int64 key of each sample.
        how: The parameters.
    """
    if how.probability == 0:
        return images
    channels, height, width = images.shape[1:]
    gate = uniform_rows(key, _GATE, 2)
    number = torch.where(gate[:, 0] < how.probability, 1 + whole(gate[:, 1], how.count), 0)
    for box in range(how.count):
        erased = inside(boxes(key, box, height, width, how), height, width)
        erased = erased & (number > box)[:, None, None, None]
        if how.mode == "const":
            images = images.masked_fill(erased, 0.0)
        else:
            size = (height, width) if how.mode == "pixel" else (1, 1)
            salt = fold(_NOISE, box)
            fill = noise(key, salt, channels * math.prod(size)).reshape(-1, channels, *size)
            images = torch.where(erased, fill.to(images.dtype), images)
    return images


def boxes(key: Int64[Tensor, " batch"], box: int, height: int, width: int, how: Erasing) -> Boxes:
    """Draw box number `box` of each sample.

    Of ten draws of area and aspect, the first whose height and width are smaller than the image's
    counts; if there is none, the box is empty.
    """
    draws = uniform_rows(key, fold(_GATE, box), 2 * _ATTEMPTS + 2)
    area = how.area[0] + (how.area[1] - how.area[0]) * draws[:, :_ATTEMPTS]
    area = area * (height * width / how.count)
    low, high = math.log(how.aspect[0]), math.log(how.aspect[1])
    aspect = torch.exp(low + (high - low) * draws[:, _ATTEMPTS : 2 * _ATTEMPTS])
    heights, widths = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    fitting = fits.gather(1, first)[:, 0]
    box_height = torch.where(fitting, heights.gather(1, first)[:, 0], 0.0).to(torch.int64)
    box_width = torch.where(fitting, widths.gather(1, first)[:, 0], 0.0).to(torch.int64)
    top = whole(draws[:, -2], height - box_height + 1)
    left = whole(draws[:, -1], width - box_width + 1)
    return Boxes(top, left, box_height, box_width)


def noise(key: Int64[Tensor, " batch"], salt: int, count: int) -> Float[Tensor, "batch {count}"]:
    """Return `count` float32 standard normal numbers per sample: a window of one fixed table."""
    place = whole(uniform_rows(key, salt, 1)[:, 0], _WINDOWS)
    return _table(count, key.device).unfold(0, count, _STRIDE)[place]


@functools.lru_cache(maxsize=8)
def _table(count: int, device: torch.device) -> Float[Tensor, " numbers"]:
    numbers = torch.empty(count + _STRIDE * (_WINDOWS - 1))
    return numbers.normal_(generator=generator("erasing noise")).to(device)
