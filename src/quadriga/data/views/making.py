"""One view in a worker: crop, mirror, colour jitter, grey, blur and solarisation with numpy.

The formulas are those of torchvision's transforms on Pillow images. Values are not rounded between
the operations, so that results differ from Pillow's by the levels that its roundings lose; Pillow's
hue has 256 steps, here it has none. numpy takes a half to a fifth of the time of torch for these
few operations on small arrays. Every operation is elementwise, or a sum of whole numbers: the
result does not depend on the number of threads.

Images are float32 (channels, height, width) with levels from 0 to 255.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, UInt8

from quadriga.data.images.decode import Interpolation, resize
from quadriga.data.views.policies import ViewDraws

Rgb = Float[np.ndarray, "3 height width"]

_REACH = 3.0
"""Standard deviations at which a Gaussian is cut off."""


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
        view = view[..., ::-1]
    if drawn.blends or drawn.hue or drawn.grey or drawn.sigma:
        image = _jittered(view.astype(np.float32, order="C"), drawn)
        if drawn.grey:
            image = grey_of(image)
        if drawn.sigma:
            image = blur(image, drawn.sigma)
        image += np.float32(0.5)
        view = image.astype(np.uint8)
    return np.minimum(view, ~view) if drawn.solarised else view


def _jittered(image: npt.NDArray[np.float32], drawn: ViewDraws) -> npt.NDArray[np.float32]:
    for number in range(len(drawn.blends) + 1):
        if drawn.hue and number == drawn.before_hue:
            image = rotate_hue(image, drawn.hue)
        if number == len(drawn.blends):
            break
        name, factor = drawn.blends[number]
        if name == "brightness":
            blend(image, 0.0, factor)
        else:
            blend(image, mean_grey(image) if name == "contrast" else grey_of(image), factor)
    return image


def grey_of(image: Rgb) -> Float[np.ndarray, "1 height width"]:
    """Return the grey of each pixel: 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601)."""
    grey = image[:1] * np.float32(0.299)
    grey += image[1:2] * np.float32(0.587)
    grey += image[2:] * np.float32(0.114)
    return grey


def mean_grey(image: Rgb) -> float:
    """Return the mean of the grey in whole levels, as Pillow does."""
    grey = np.rint(grey_of(image))
    mean = float(grey.sum(dtype=np.float64)) / grey.size
    return float(math.floor(mean + 0.5))


def blend(image: Rgb, base: float | npt.NDArray[np.float32], factor: float) -> Rgb:
    """Return ``base + factor * (image - base)``, clipped: brightness, contrast or saturation.

    Args:
        image: Changed in place.
        base: Black (0) for brightness, `mean_grey` for contrast, `grey_of` for saturation.
        factor: 1 changes nothing.
    """
    image *= np.float32(factor)
    image += base * np.float32(1 - factor)
    return np.clip(image, 0, 255, out=image)


def rotate_hue(image: Rgb, turns: float) -> Rgb:
    """Rotate the hue of the HSV colours by a number of turns; value and saturation stay."""
    red, green, blue = image
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    spread = high - low
    # Sixths of a turn, counted from red, from green or from blue, whichever is the greatest.
    of_green, of_blue = blue - red, red - green
    of_green += 2 * spread
    of_blue += 4 * spread
    hue = np.where(red == high, green - blue, np.where(green == high, of_green, of_blue))
    hue /= np.maximum(spread, np.float32(1e-6))
    hue += np.float32(6 * turns)
    hue -= 6 * np.floor(hue * np.float32(1 / 6))
    # Green and blue rise to their sixth and fall after it; red falls to cyan and rises after it.
    shares: npt.NDArray[np.float32] = np.abs(hue - _CENTRE)
    shares *= _SIGN
    shares += _OFFSET
    np.clip(shares, 0, 1, out=shares)
    shares *= spread
    shares += low
    return shares


_CENTRE, _SIGN, _OFFSET = (
    np.array(values, np.float32).reshape(3, 1, 1) for values in ((3, 2, 4), (1, -1, -1), (-1, 2, 2))
)


def blur(
    image: Float[np.ndarray, "channels height width"], sigma: float
) -> Float[np.ndarray, "channels height width"]:
    """Convolve with a Gaussian, edge pixels repeated.

    Args:
        image: The image.
        sigma: Standard deviation in pixels.
    """
    radius = math.ceil(_REACH * sigma)
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    for axis in (1, 2):
        lines = np.moveaxis(image, axis, 1)
        count = lines.shape[1]
        padded = np.moveaxis(np.empty(_longer(image, axis, 2 * radius), np.float32), axis, 1)
        padded[:, radius : radius + count] = lines
        padded[:, :radius] = lines[:, :1]
        padded[:, radius + count :] = lines[:, -1:]
        image = np.empty_like(image)
        total, pair = np.moveaxis(image, axis, 1), np.moveaxis(np.empty_like(image), axis, 1)
        np.multiply(lines, np.float32(weights[0]), out=total)
        for distance in range(1, radius + 1):
            before, after = radius - distance, radius + distance
            np.add(padded[:, before : before + count], padded[:, after : after + count], out=pair)
            pair *= np.float32(weights[distance])
            total += pair
    return image


def _longer(image: npt.NDArray[np.float32], axis: int, more: int) -> tuple[int, ...]:
    return tuple(n + more if i == axis else n for i, n in enumerate(image.shape))
