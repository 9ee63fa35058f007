"""The views of a batch, all at once on any device: crops and colours with torch.

A crop with its antialiased resize is two matrix products per image, and so is a blur: one batched
product does the work of one slice and one kernel launch per image, and the boxes need not come back
to the host. A view that was not drawn to change is changed by nothing: a factor of 1, a Gaussian
without width. Levels are floats from 0 to 255, not rounded.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from quadriga.data.images.decode import Interpolation
from quadriga.data.views.making import make_view
from quadriga.data.views.policies import BLENDS, WIDEST, Policy, ViewDraws

SMALL_PX = 64
"""Larger views are faster one by one on a CPU."""
Images = Float[Tensor, "batch 3 height width"]
Factor = Float[Tensor, "batch 1 1 1"]

_WHITE = 255.0
_REACH = 3.0
"""Standard deviations at which a Gaussian is cut off."""


def make_views(
    pictures: UInt8[Tensor, "batch 3 side side"],
    draws: Float[Tensor, "batch {NUMBERS}"],
    policy: Policy,
    px: int,
    interpolation: Interpolation,
) -> Float[Tensor, "batch 3 {px} {px}"]:
    """Return one view of each picture, with levels from 0 to 255.

    Args:
        pictures: Decoded images.
        draws: `ViewDraws.numbers` of each.
        policy: What they were drawn from; operations that it never draws are left out.
        px: Height and width of the view.
        interpolation: Filter of the resize.
    """
    if pictures.device.type == "cpu" and px > SMALL_PX:
        views = np.empty((len(pictures), 3, px, px), np.uint8)
        images = pictures.permute(0, 2, 3, 1).numpy()
        for place, (image, numbers) in enumerate(zip(images, draws.tolist(), strict=True)):
            drawn = ViewDraws.of(numbers)
            top, left, height, width = drawn.box
            pixels = image[top : top + height, left : left + width]
            views[place] = make_view(pixels, drawn, px, interpolation)
        return torch.from_numpy(views).to(torch.float32)
    # A second pass over a batch makes its views again under the autocast of the encoder.
    with torch.autocast(pictures.device.type, enabled=False):
        return _coloured(cropped(pictures, draws, px, interpolation), draws, policy)


def cropped(
    pictures: UInt8[Tensor, "batch 3 side side"],
    draws: Float[Tensor, "batch {NUMBERS}"],
    px: int,
    interpolation: Interpolation,
) -> Float[Tensor, "batch 3 {px} {px}"]:
    """Return the resized crops, mirrored where that was drawn, with levels from 0 to 255.

    Args:
        pictures: Decoded images.
        draws: `ViewDraws.numbers` of each.
        px: Height and width of a crop.
        interpolation: Filter of the resize.
    """
    top, left, height, width, flipped = draws[:, :5].unbind(1)
    side = pictures.shape[-1]
    rows = resize_matrix(top, height, torch.zeros_like(flipped), side, px, interpolation)
    columns = resize_matrix(left, width, flipped, side, px, interpolation)
    interleaved = pictures.permute(0, 2, 1, 3).contiguous().to(torch.float32)
    tall = rows @ interleaved.flatten(2)
    crops = tall.reshape(-1, 3 * px, side) @ columns.mT
    return crops.reshape(-1, px, 3, px).permute(0, 2, 1, 3).contiguous().clamp_(0, 255)


def resize_matrix(
    start: Float[Tensor, " batch"],
    length: Float[Tensor, " batch"],
    flipped: Float[Tensor, " batch"],
    side: int,
    px: int,
    interpolation: Interpolation,
) -> Float[Tensor, "batch {px} {side}"]:
    """Return the weights of the antialiased resize of a part of a line to `px` pixels.

    The same as those of Pillow and of torch's `interpolate(antialias=True)`.

    Args:
        start: First pixel of the part.
        length: Its number of pixels.
        flipped: 1 where it is mirrored.
        side: Pixels of the line.
        px: Pixels of the output.
        interpolation: The filter.
    """
    start, length, flipped = (v[:, None, None] for v in (start, length, flipped))
    place = torch.arange(px, device=start.device)[:, None] + 0.5
    place = torch.where(flipped > 0, px - place, place)
    scale = length / px
    source = torch.arange(side, device=start.device) + 0.5
    distance = ((source - start - place * scale) / scale.clamp(min=1)).abs_()
    inside = (source > start) & (source < start + length)
    weights = _filter(distance, interpolation).mul_(inside)
    return weights.div_(weights.sum(-1, keepdim=True))


def _filter(distance: Tensor, interpolation: Interpolation) -> Tensor:
    if interpolation == "bilinear":
        return (1 - distance).clamp_(min=0)
    # Cubic convolution with a = -0.5 (Keys, 1981).
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, far.mul_(distance < 2))


def _coloured(images: Tensor, draws: Tensor, policy: Policy) -> Tensor:
    kinds, factors = draws[:, 5:8], draws[:, 8:11]
    hue, before, grey, sigma, solarised = draws[:, 11:, None, None, None].unbind(1)
    if policy.jitter_probability:
        for slot in range(len(BLENDS)):
            _blend(images, kinds[:, slot], factors[:, slot], slot < before)
        if policy.hue:
            images = rotate_hue(images, hue)
        for slot in range(len(BLENDS)):
            _blend(images, kinds[:, slot], factors[:, slot], slot >= before)
    if policy.grey_probability:
        images = torch.where(grey > 0, grey_of(images), images)
    if policy.blur_probability:
        images = blur(images, sigma)
    if policy.solarise_probability:
        images = torch.where(solarised > 0, solarise(images), images)
    return images


def _blend(images: Tensor, kind: Tensor, factor: Tensor, is_now: Tensor) -> None:
    kind, factor = (v[:, None, None, None] for v in (kind, factor))
    base = torch.where(kind == BLENDS.index("contrast"), mean_grey(images), grey_of(images))
    base = base.mul_(kind > BLENDS.index("brightness"))
    blend_(images, base, torch.where(is_now, factor, 1.0))


def grey_of(images: Images) -> Float[Tensor, "batch 1 height width"]:
    """Return the grey of each pixel: 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601)."""
    red, green, blue = images.chunk(3, dim=1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def mean_grey(images: Images) -> Float[Tensor, "batch 1 1 1"]:
    """Return the mean of each image's grey.

    Pillow and `making.mean_grey` round it to a level. Here a product in another order, in a batch
    of another size, would then be able to move it by one.
    """
    return grey_of(images).mean((1, 2, 3), keepdim=True)


def blend_(images: Images, base: Tensor, factor: Factor) -> Images:
    """Return ``base + factor * (images - base)``, clipped: brightness, contrast or saturation.

    Args:
        images: Changed in place.
        base: Black (0) for brightness, `mean_grey` for contrast, `grey_of` for saturation.
        factor: 1 changes nothing.
    """
    return images.mul_(factor).add_(base * (1 - factor)).clamp_(0, _WHITE)


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


def solarise(images: Tensor) -> Tensor:
    """Invert the levels from 128 on."""
    return torch.minimum(images, _WHITE - images)
