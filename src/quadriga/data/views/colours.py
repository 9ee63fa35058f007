"""Colour jitter, grey, blur and solarisation of float images with levels from 0 to 255.

The formulas are those of torchvision's transforms on Pillow images. Values are not rounded between
the operations, so that results differ from Pillow's by the levels that its roundings lose; Pillow's
hue has 256 steps, here it has none. Images are changed in place where that is possible.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch 3 height width"]
Factor = float | Float[Tensor, "batch 1 1 1"]

_WHITE = 255.0
_REACH = 3.0
"""Standard deviations at which a Gaussian is cut off."""
WIDEST = 4.0
"""Greatest standard deviation of a blur in pixels."""


def grey_of(images: Images) -> Float[Tensor, "batch 1 height width"]:
    """Return the grey of each pixel: 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601)."""
    red, green, blue = images.chunk(3, dim=1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def mean_grey(images: Images) -> Float[Tensor, "batch 1 1 1"]:
    """Return the mean of each image's grey in whole levels, as Pillow does.

    The sum is one of whole numbers in float64: it does not depend on its order.
    """
    grey = grey_of(images).round_()
    total = grey.sum((1, 2, 3), keepdim=True, dtype=torch.float64)
    return total.div_(grey[0].numel()).add_(0.5).floor_().to(torch.float32)


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
    red, green, blue = images.chunk(3, dim=1)
    high = torch.maximum(red, green).maximum(blue)
    low = torch.minimum(red, green).minimum(blue)
    spread = high - low
    scale = spread.clamp(min=1e-6).reciprocal_()
    # Sixths of a turn, counted from red, from green or from blue, whichever is the greatest.
    hue = torch.sub(green, blue).mul_(scale)
    of_green = torch.sub(blue, red).mul_(scale).add_(2)
    of_blue = torch.sub(red, green).mul_(scale).add_(4)
    hue = torch.where(red == high, hue, torch.where(green == high, of_green, of_blue))
    hue.mul_(1 / 6).add_(turns).frac_()
    hue.add_(hue < 0).mul_(6)
    centre, sign, offset = _edges(images.device)
    # Green and blue rise to their sixth and fall after it; red falls to cyan and rises after it.
    shares = torch.addcmul(offset, (hue - centre).abs_(), sign).clamp_(0, 1)
    return shares.mul_(spread).add_(low)


@functools.lru_cache(maxsize=8)
def _edges(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    values = torch.tensor([[3.0, 2.0, 4.0], [1.0, -1.0, -1.0], [-1.0, 2.0, 2.0]])
    centre, sign, offset = values.reshape(3, 3, 1, 1).to(device)
    return centre, sign, offset


def blur(images: Float[Tensor, "batch channels side side"], sigma: Tensor) -> Tensor:
    """Convolve square images with Gaussians, edge pixels repeated.

    Args:
        images: The images.
        sigma: Standard deviations in pixels, at most `WIDEST`, float32 (batch, 1, 1, 1); 0 changes
            nothing.
    """
    squares, repeat = _line(images.shape[-1], images.device)
    precision = sigma.clamp(min=1e-3).pow(-2).mul(-0.5)
    matrix = torch.exp(squares * precision) @ repeat
    matrix = matrix.div_(matrix.sum(-1, keepdim=True))
    return matrix @ images @ matrix.mT


@functools.lru_cache(maxsize=8)
def _line(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what the Gaussians along a line are made of.

    Returns:
        The squared distances (side, places) of the pixels from the places of the line and of a
        border around it; and 1 where a place (places, side) shows a pixel.
    """
    border = math.ceil(_REACH * WIDEST)
    places = torch.arange(-border, side + border)
    pixels = torch.arange(side)
    squares = (places - pixels[:, None]) ** 2
    shown = places.clamp(0, side - 1)[:, None] == pixels
    return squares.to(device, torch.float32), shown.to(device, torch.float32)


def blur_by_shifts(images: Float[Tensor, "1 channels height width"], sigma: float) -> Tensor:
    """Convolve one image with a Gaussian, edge pixels repeated: faster than `blur` if it is large.

    Args:
        images: The image.
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
