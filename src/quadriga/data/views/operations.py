"""The operations of augmentations, on 8-bit RGB images in a worker process.

They follow the published formulas of AutoAugment (Cubuk et al., arXiv:1805.09501), RandAugment
(arXiv:1909.13719) and DeiT-III (Touvron et al., arXiv:2204.07118). Operations that map each value
separately use a table of 256 entries, which is faster than Pillow's own functions.

Shears and translations shift each line of the image along itself. Pillow reads 16 neighbours for
each pixel of a bicubic affine transform. A shifted line needs only four, with the same four weights
for the whole line: this takes a quarter of the time, with the same result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, UInt8
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Filter = Image.Resampling


_TAPS = {Filter.BICUBIC: (-1, 0, 1, 2), Filter.BILINEAR: (0, 1)}


def shift_lines(
    planes: UInt8[np.ndarray, "3 height width"],
    shifts: Float[np.ndarray, " lines"],
    vertical: bool,
    kind: Filter,
    fill: tuple[int, int, int],
) -> UInt8[np.ndarray, "3 height width"]:
    """Shift each row or column along itself by its own distance in pixels.

    The result equals that of Pillow's affine transform to within one level: cubic convolution with
    a = -1 (Keys, "Cubic convolution interpolation for digital image processing", 1981) or linear
    interpolation, with edge pixels repeated under the filter, rounded down.

    Args:
        planes: The image, uint8 (3, height, width).
        shifts: float (lines,): source position minus target position of each line, in pixels.
        vertical: Whether the lines are columns.
        kind: The filter.
        fill: Colour of the pixels whose source position is outside the image.
    """
    lines = planes.swapaxes(1, 2) if vertical else planes
    length = lines.shape[2]
    steps = np.floor(shifts).astype(np.int64)
    weights = _weights((shifts - steps).astype(np.float32), kind)
    taps = _TAPS[kind]
    # A line shifted by more than its length is outside; larger shifts need only a wider border.
    steps = steps.clip(-length - 2, length + 2)
    windows = _windows(lines, steps, taps, vertical)
    total = windows[..., :length] * weights[0][:, None]
    for tap in range(1, len(taps)):
        total += windows[..., tap : tap + length] * weights[tap][:, None]
    # The sum of the weights may be rounded below 1; that must not lower a flat area by one level.
    total += np.float32(1e-3)
    np.clip(total, 0, 255, out=total)
    found = total.astype(np.uint8)
    places = np.arange(length) + 0.5 + shifts[:, None]
    outside = (places < 0) | (places >= length)
    if outside.any():
        np.copyto(found, np.array(fill, np.uint8)[:, None, None], where=outside[None])
    return np.ascontiguousarray(found.swapaxes(1, 2) if vertical else found)


def _windows(
    lines: npt.NDArray[np.uint8],
    steps: npt.NDArray[np.int64],
    taps: tuple[int, ...],
    vertical: bool,
) -> npt.NDArray[np.float32]:
    """Return each line from its first tap on, its ends repeated, in the memory order of `lines`."""
    count, length = lines.shape[1:]
    border = int(np.abs(steps).max()) + 2
    padded = _like((3, count, length + 2 * border), np.uint8, vertical)
    padded[..., border : border + length] = lines
    padded[..., :border] = lines[..., :1]
    padded[..., border + length :] = lines[..., -1:]
    width = length + taps[-1] - taps[0]
    windows = _like((3, count, width), np.float32, vertical)
    # Neighbouring lines often shift by the same number of whole pixels: copy them together.
    cuts = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), count]
    for start, stop in itertools.pairwise(cuts):
        first = border + int(steps[start]) + taps[0]
        windows[:, start:stop] = padded[:, start:stop, first : first + width]
    return windows


def _like(shape: tuple[int, int, int], dtype: type, vertical: bool) -> npt.NDArray[Any]:
    if not vertical:
        return np.empty(shape, dtype)
    return np.empty((shape[0], shape[2], shape[1]), dtype).swapaxes(1, 2)


def _weights(place: npt.NDArray[np.float32], kind: Filter) -> list[npt.NDArray[np.float32]]:
    """Return the weights (lines,) of each tap, for positions between two pixels in [0, 1)."""
    if kind == Filter.BILINEAR:
        return [1 - place, place]
    square, cube = place**2, place**3
    return [
        -place + 2 * square - cube,
        1 - 2 * square + cube,
        place + square - cube,
        cube - square,
    ]


_ABOVE = 128
_LEVELS = np.arange(256)


class Drawn(NamedTuple):
    """One drawn operation with all its parameters."""

    name: str
    """One of `OPERATIONS`."""
    amount: float = 0.0
    """Strength of the operation, in the unit given at `OPERATIONS`; some operations ignore it."""
    filter: Filter = Filter.BICUBIC
    """Interpolation of geometric operations."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """Colour of the pixels that a geometric operation leaves empty."""


Operation = Callable[[Image.Image, Drawn], Image.Image]


def _through(image: Image.Image, table: npt.NDArray[np.int64]) -> Image.Image:
    """Map every value of every channel by a table of 256 entries, clipped to [0, 255]."""
    return image.point(table.clip(0, 255).astype(np.uint8).tolist() * 3)


def _auto_contrast(image: Image.Image, drawn: Drawn) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, drawn: Drawn) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _through(image, 255 - _LEVELS)


def _posterize(image: Image.Image, drawn: Drawn) -> Image.Image:
    # A table, since Pillow 13 and later refuse to keep 0 bits.
    bits = min(8, max(0, int(drawn.amount)))
    return _through(image, _LEVELS & ~(2 ** (8 - bits) - 1))


def _solarize(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _through(image, np.where(drawn.amount > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _through(image, np.where(_LEVELS < _ABOVE, _LEVELS + int(drawn.amount), _LEVELS))


def _colour(image: Image.Image, drawn: Drawn) -> Image.Image:
    return ImageEnhance.Color(image).enhance(drawn.amount)


def _brightness(image: Image.Image, drawn: Drawn) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(drawn.amount)


def _contrast(image: Image.Image, drawn: Drawn) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(drawn.amount)


def _sharpness(image: Image.Image, drawn: Drawn) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(drawn.amount)


def _rotate(image: Image.Image, drawn: Drawn) -> Image.Image:
    return image.rotate(drawn.amount, drawn.filter, fillcolor=drawn.fill)


def _grey(image: Image.Image, drawn: Drawn) -> Image.Image:
    grey = image.convert("L")
    return Image.merge("RGB", (grey, grey, grey))


def _blur(image: Image.Image, drawn: Drawn) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(drawn.amount))


_ON_IMAGES: dict[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "colour": _colour,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "grey": _grey,
    "blur": _blur,
}
_ON_LINES = ("shear_x", "shear_y", "translate_x", "translate_y")

OPERATIONS = (*_ON_IMAGES, *_ON_LINES)
"""The names of all operations. Amounts: ``rotate`` degrees anticlockwise; ``posterize`` number of
kept bits; ``solarize`` the smallest value that is inverted; ``solarize_add`` the increment of
values below 128; ``colour``, ``contrast``, ``brightness`` and ``sharpness`` the weight of the image
in a blend with its grey version, its mean grey, black and its smoothed version, where 1 is the
unchanged image; ``shear_*`` pixels per pixel; ``translate_*`` a fraction of the side; ``blur`` the
standard deviation in pixels."""


def apply(planes: npt.NDArray[np.uint8], operations: list[Drawn]) -> npt.NDArray[np.uint8]:
    """Apply operations one after another.

    Args:
        planes: uint8 RGB (3, height, width).
        operations: The drawn operations; with an empty list `planes` itself is returned.

    Returns:
        uint8 (3, height, width).
    """
    image: Image.Image | None = None
    for drawn in operations:
        if drawn.name in _ON_LINES:
            planes = _lines_moved(planes if image is None else _planes(image), drawn)
            image = None
            continue
        if image is None:
            # Merging planes takes half the time of interleaving the channels first.
            image = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
        image = _ON_IMAGES[drawn.name](image, drawn)
    return planes if image is None else _planes(image)


def _planes(image: Image.Image) -> npt.NDArray[np.uint8]:
    values = b"".join(image.tobytes("raw", channel) for channel in "RGB")
    return np.frombuffer(values, np.uint8).reshape(3, image.height, image.width)


def _lines_moved(planes: npt.NDArray[np.uint8], drawn: Drawn) -> npt.NDArray[np.uint8]:
    """Shear or translate: each pixel is read from another position in its row or column."""
    vertical = drawn.name.endswith("_y")
    height, width = planes.shape[1:]
    lines, length = (width, height) if vertical else (height, width)
    if drawn.name.startswith("shear"):
        shifts = drawn.amount * (np.arange(lines) + 0.5)
    else:
        shifts = np.full(lines, drawn.amount * length)
    return shift_lines(planes, shifts, vertical, drawn.filter, drawn.fill)
