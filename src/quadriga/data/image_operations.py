"""The operations that augmentations are made of, on 8-bit RGB Pillow images in a worker process.

They follow the published formulas of AutoAugment (Cubuk et al., arXiv:1805.09501), RandAugment
(arXiv:1909.13719) and DeiT-III (Touvron et al., arXiv:2204.07118). What maps each value by itself
goes through a table of 256 entries, which costs less than Pillow's own function for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

_ABOVE = 128
_LEVELS = np.arange(256)
Filter = Image.Resampling


class Drawn(NamedTuple):
    """One operation that was drawn, and everything that decides its result."""

    name: str
    """A key of `OPERATIONS`."""
    amount: float = 0.0
    """What it means is up to the operation; some have none."""
    filter: Filter = Filter.BICUBIC
    """How an operation that moves pixels reads between them."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """What such an operation puts where nothing came from."""


Operation = Callable[[Image.Image, Drawn], Image.Image]


def _through(image: Image.Image, table: npt.NDArray[np.float32 | np.int64]) -> Image.Image:
    """Map every value of every channel through 256 entries, cut off to 0 to 255 and rounded down"""
    return image.point(table.clip(0, 255).astype(np.uint8).tolist() * 3)


def _auto_contrast(image: Image.Image, drawn: Drawn) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, drawn: Drawn) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _through(image, 255 - _LEVELS)


def _posterize(image: Image.Image, drawn: Drawn) -> Image.Image:
    # A table, since Pillow refuses to keep 0 bits from its version 13 on.
    bits = min(8, max(0, int(drawn.amount)))
    return _through(image, _LEVELS & ~(2 ** (8 - bits) - 1))


def _solarize(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _through(image, np.where(drawn.amount > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _through(image, np.where(_LEVELS < _ABOVE, _LEVELS + int(drawn.amount), _LEVELS))


def _colour(image: Image.Image, drawn: Drawn) -> Image.Image:
    return ImageEnhance.Color(image).enhance(drawn.amount)


def _brightness(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _through(image, np.float32(drawn.amount) * _LEVELS.astype(np.float32))


def _contrast(image: Image.Image, drawn: Drawn) -> Image.Image:
    counts = np.asarray(image.convert("L").histogram())
    mean = np.float32(int((counts @ _LEVELS) / counts.sum() + 0.5))
    return _through(image, mean + np.float32(drawn.amount) * (_LEVELS.astype(np.float32) - mean))


def _sharpness(image: Image.Image, drawn: Drawn) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(drawn.amount)


def _moved(
    image: Image.Image, drawn: Drawn, matrix: tuple[float, float, float, float, float, float]
) -> Image.Image:
    """Read the pixel at (x, y) from (a x + b y + c, d x + e y + f) of the image."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, drawn.filter, fillcolor=drawn.fill
    )


def _rotate(image: Image.Image, drawn: Drawn) -> Image.Image:
    return image.rotate(drawn.amount, drawn.filter, fillcolor=drawn.fill)


def _shear_x(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _moved(image, drawn, (1, drawn.amount, 0, 0, 1, 0))


def _shear_y(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _moved(image, drawn, (1, 0, 0, drawn.amount, 1, 0))


def _translate_x(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _moved(image, drawn, (1, 0, drawn.amount * image.width, 0, 1, 0))


def _translate_y(image: Image.Image, drawn: Drawn) -> Image.Image:
    return _moved(image, drawn, (1, 0, 0, 0, 1, drawn.amount * image.height))


def _grey(image: Image.Image, drawn: Drawn) -> Image.Image:
    grey = image.convert("L")
    return Image.merge("RGB", (grey, grey, grey))


def _blur(image: Image.Image, drawn: Drawn) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(drawn.amount))


OPERATIONS: dict[str, Operation] = {
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
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "grey": _grey,
    "blur": _blur,
}
"""Every operation by name. Amounts: ``rotate`` degrees anticlockwise; ``posterize`` bits that are
kept; ``solarize`` the least value that is inverted; ``solarize_add`` what is added to values below
128; ``colour``, ``contrast``, ``brightness`` and ``sharpness`` the weight of the image in a blend
with its grey version, its mean grey, black and its smoothed version, 1 for the image as it is;
``shear_*`` pixels per pixel; ``translate_*`` a share of the side; ``blur`` the standard deviation
in pixels."""


def apply(planes: npt.NDArray[np.uint8], operations: list[Drawn]) -> npt.NDArray[np.uint8]:
    """Apply operations one after another.

    Args:
        planes: uint8 (3, height, width), in RGB.
        operations: What was drawn; none returns `planes` itself.

    Returns:
        uint8 (3, height, width).
    """
    if not operations:
        return planes
    # Plane by plane: half the time of interleaving the channels first.
    image = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
    for drawn in operations:
        image = OPERATIONS[drawn.name](image, drawn)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
