"""How a view is made of its draws: one view in a worker, or those of a batch on any device.

In a batch, a crop with its antialiased resize is two matrix products per image, and so is a blur:
one batched product does the work of one slice and one kernel launch per image, and the boxes need
not come back to the host. A view that was not drawn to change is changed by nothing: a factor of 1,
a Gaussian without width.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from quadriga.data.images.decode import Interpolation, resize
from quadriga.data.views.colours import (
    blend_,
    blur,
    blur_by_shifts,
    grey_of,
    mean_grey,
    rotate_hue,
    solarise,
)
from quadriga.data.views.policies import BLENDS, Policy, ViewDraws

SMALL_PX = 64
"""Up to this size a CPU is faster with matrix products and whole batches."""


def make_view(
    pixels: UInt8[np.ndarray, "in_height in_width 3"],
    drawn: ViewDraws,
    px: int,
    interpolation: Interpolation,
) -> UInt8[np.ndarray, "channels {px} {px}"]:
    """Return one view, of one channel if all three are the same.

    Args:
        pixels: uint8 RGB, the crop.
        drawn: What was drawn for the view.
        px: Height and width of the view.
        interpolation: Filter of the resize.
    """
    view = resize(pixels, px, px, interpolation)
    if drawn.flipped:
        view = np.ascontiguousarray(view[..., ::-1])
    if drawn.blends or drawn.hue or drawn.grey or drawn.sigma:
        images = _jittered(torch.from_numpy(view).to(torch.float32)[None], drawn)
        if drawn.grey:
            images = grey_of(images)
        if drawn.sigma and px <= SMALL_PX:
            images = blur(images, torch.full((1, 1, 1, 1), drawn.sigma))
        elif drawn.sigma:
            images = blur_by_shifts(images, drawn.sigma)
        # numpy's conversion takes a sixth of the time of torch's.
        view = images[0].add_(0.5).numpy().astype(np.uint8)
    return np.minimum(view, ~view) if drawn.solarised else view


def _jittered(images: Tensor, drawn: ViewDraws) -> Tensor:
    for number in range(len(drawn.blends) + 1):
        if drawn.hue and number == drawn.before_hue:
            images = rotate_hue(images, drawn.hue)
        if number == len(drawn.blends):
            break
        name, factor = drawn.blends[number]
        if name == "brightness":
            blend_(images, 0.0, factor)
        else:
            blend_(images, mean_grey(images) if name == "contrast" else grey_of(images), factor)
    return images


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
        views = torch.empty(len(pictures), 3, px, px)
        images = pictures.permute(0, 2, 3, 1).numpy()
        for view, image, numbers in zip(views, images, draws.tolist(), strict=True):
            drawn = ViewDraws.of(numbers)
            top, left, height, width = drawn.box
            pixels = image[top : top + height, left : left + width]
            view[:] = torch.from_numpy(make_view(pixels, drawn, px, interpolation))
        return views
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
