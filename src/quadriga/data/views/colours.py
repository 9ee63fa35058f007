"""Colour jitter, grey, blur and solarisation of float images with levels from 0 to 255.

The formulas are those of torchvision's transforms on Pillow images. Values are not rounded between
the operations, so that results differ from Pillow's by the levels that its roundings lose; Pillow's
hue has 256 steps, here it has none. Images are changed in place where that is possible.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch 3 height width"]
Factor = float | Float[Tensor, "batch 1 1 1"]

_WHITE = 255.0
_REACH = 3.0
"""Standard deviations at which a Gaussian is cut off."""


def grey_of(images: Images) -> Float[Tensor, "batch 1 height width"]:
    """Return the grey of each pixel: 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601)."""
    red, green, blue = images.split(1, dim=1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def mean_grey(images: Images) -> Float[Tensor, "batch 1 1 1"]:
    """Return the mean of each image's grey in whole levels, as Pillow does.

    Of whole numbers, so that it does not depend on the order of the summation.
    """
    levels = grey_of(images).round_().to(torch.int32)
    count = levels[0].numel()
    total = levels.sum((1, 2, 3), keepdim=True)
    return ((2 * total + count) // (2 * count)).to(torch.float32)


def blend_(images: Images, base: float | Tensor, factor: Factor) -> Images:
    """Return ``base + factor * (images - base)``, clipped: brightness, contrast or saturation.

    Args:
        images: Changed in place.
        base: Black (0) for brightness, `mean_grey` for contrast, `grey_of` for saturation.
        factor: 1 changes nothing.
    """
    images.mul_(factor)
    if not isinstance(base, float):
        images.add_(base * (1 - factor))
    return images.clamp_(0, _WHITE)


def rotate_hue(images: Images, turns: Factor) -> Images:
    """Rotate the hue of the HSV colours by a number of turns; value and saturation stay."""
    red, green, blue = images.split(1, dim=1)
    high = torch.maximum(red, green).maximum(blue)
    low = torch.minimum(red, green).minimum(blue)
    spread = high - low
    # Sixths of a turn from red, from green or from blue, whichever is the greatest.
    scale = 1 / spread.clamp(min=1e-6)
    of_blue = torch.sub(red, green).mul_(scale).add_(4)
    of_green = torch.sub(blue, red).mul_(scale).add_(2)
    hue = torch.sub(green, blue).mul_(scale)
    hue = torch.where(red == high, hue, torch.where(green == high, of_green, of_blue))
    # Rising and falling edges of a channel lie one sixth to two sixths from its centre.
    centres = hue.new_tensor([0.0, 2.0, 4.0]).reshape(3, 1, 1)
    away = (hue + 6 * turns) - centres
    away = away.sub_(6 * (away / 6).round_()).abs_()
    return away.neg_().add_(2).clamp_(0, 1).mul_(spread).add_(low)


def blur(images: Float[Tensor, "1 channels height width"], sigma: float) -> Tensor:
    """Convolve with a Gaussian, edge pixels repeated.

    Args:
        images: One image.
        sigma: Standard deviation in pixels.
    """
    radius = max(1, math.ceil(_REACH * sigma))
    values = [math.exp(-0.5 * (distance / sigma) ** 2) for distance in range(radius + 1)]
    total = values[0] + 2 * sum(values[1:])
    weights = [value / total for value in values]
    for dim in (2, 3):
        size = images.shape[dim]
        first, last = images.narrow(dim, 0, 1), images.narrow(dim, size - 1, 1)
        shape = [radius if d == dim else -1 for d in range(4)]
        padded = torch.cat([first.expand(shape), images, last.expand(shape)], dim)
        images = padded.narrow(dim, radius, size) * weights[0]
        for distance, weight in enumerate(weights[1:], 1):
            images.add_(padded.narrow(dim, radius - distance, size), alpha=weight)
            images.add_(padded.narrow(dim, radius + distance, size), alpha=weight)
    return images


def solarise(images: Tensor) -> Tensor:
    """Invert the levels from 128 on."""
    return torch.minimum(images, _WHITE - images)
