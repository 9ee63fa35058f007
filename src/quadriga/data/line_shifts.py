"""Shears and translations as what they are: every line of the image moved along itself.

Pillow reads 16 neighbours for each pixel of a bicubic affine transform. A line that only moves
needs four, with the same four weights for the whole line: a quarter of the time, the same result.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, UInt8
from PIL import Image

Filter = Image.Resampling
_TAPS = {Filter.BICUBIC: (-1, 0, 1, 2), Filter.BILINEAR: (0, 1)}


def shift_lines(
    planes: UInt8[np.ndarray, "3 height width"],
    shifts: Float[np.ndarray, " lines"],
    vertical: bool,
    kind: Filter,
    fill: tuple[int, int, int],
) -> UInt8[np.ndarray, "3 height width"]:
    """Move each row or column along itself by a distance of its own, in pixels.

    To within one level what Pillow's affine transform gives: cubic convolution with a = -1 (Keys,
    "Cubic convolution interpolation for digital image processing", 1981) or linear interpolation,
    edges repeated under the filter, rounded down.

    Args:
        planes: The image.
        shifts: What is added to a place to get where it is read from, for each line.
        vertical: Whether the lines are columns.
        kind: The filter.
        fill: What is put where the place to read from is outside.
    """
    lines = planes.swapaxes(1, 2) if vertical else planes
    length = lines.shape[2]
    steps = np.floor(shifts).astype(np.int64)
    weights = _weights((shifts - steps).astype(np.float32), kind)
    taps = _TAPS[kind]
    # Beyond its own length a line is outside; a shift by more would only need a wider border.
    steps = steps.clip(-length - 2, length + 2)
    windows = _windows(lines, steps, taps, vertical)
    total = windows[..., :length] * weights[0][:, None]
    for tap in range(1, len(taps)):
        total += windows[..., tap : tap + length] * weights[tap][:, None]
    # Weights that add up to 1 but for their rounding must not take a level from a flat part.
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
    """Return each line from its first tap on, its ends repeated; laid out in memory as `lines`."""
    count, length = lines.shape[1:]
    border = int(np.abs(steps).max()) + 2
    padded = _like((3, count, length + 2 * border), np.uint8, vertical)
    padded[..., border : border + length] = lines
    padded[..., :border] = lines[..., :1]
    padded[..., border + length :] = lines[..., -1:]
    width = length + taps[-1] - taps[0]
    windows = _like((3, count, width), np.float32, vertical)
    # Neighbouring lines move by the same whole number of pixels: one copy for them together.
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
    """Return the weight of each tap, for places between two pixels in [0, 1)."""
    if kind == Filter.BILINEAR:
        return [1 - place, place]
    square, cube = place**2, place**3
    return [
        -place + 2 * square - cube,
        1 - 2 * square + cube,
        place + square - cube,
        cube - square,
    ]
