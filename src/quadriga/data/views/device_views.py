"""Crops and colours of a whole batch at once, on any device.

A crop with its antialiased resize is two matrix products per image, and so is a blur: one batched
product does the work of one slice and one kernel launch per image, and the boxes need not come back
to the host. Where a view was not drawn to change, it is changed by nothing: a factor of 1, a
Gaussian without width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from quadriga.data.images.decode import Interpolation
from quadriga.data.views.colours import blend_, blur, grey_of, mean_grey, rotate_hue, solarise
from quadriga.data.views.policies import BLENDS, Policy

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


def make_view(
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
    top, left, height, width, flipped = draws[:, :5].unbind(1)
    side = pictures.shape[-1]
    rows = resize_matrix(top, height, torch.zeros_like(flipped), side, px, interpolation)
    columns = resize_matrix(left, width, flipped, side, px, interpolation)
    interleaved = pictures.permute(0, 2, 1, 3).contiguous().to(torch.float32)
    tall = rows @ interleaved.flatten(2)
    views = tall.reshape(-1, 3 * px, side) @ columns.mT
    views = views.reshape(-1, px, 3, px).permute(0, 2, 1, 3).contiguous().clamp_(0, 255)
    return _coloured(views, draws, policy)


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
    return torch.where(distance < 1, near, far.mul_(distance < _SUPPORT["bicubic"]))


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
