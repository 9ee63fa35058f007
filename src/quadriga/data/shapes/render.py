"""Draws scenes: each shape is an inequality on a supersampled grid of its bounding box.

Every shape lies inside the unit disc of its own coordinates (u to the right, v down), so that a
scene without overlapping discs has no overlapping shapes at any tilt.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from quadriga.data.shapes.scene import BACKGROUNDS, COLORS, Scene, SceneObject

_OVERSAMPLING = 4
_SHADE = 0.5
_GRADIENT = 0.05
_PERIOD = 0.062

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]


def render(scene: Scene, image_px: int) -> npt.NDArray[np.uint8]:
    """Draw a scene.

    Args:
        scene: The scene.
        image_px: Side of the image in pixels.

    Returns:
        uint8 RGB pixels, shape (image_px, image_px, 3).
    """
    canvas = _background(scene, image_px)
    for item in scene.objects:
        _draw(canvas, item)
    return (canvas + 0.5).astype(np.uint8)


def _background(scene: Scene, image_px: int) -> Floats:
    """Return the background, float32 (image_px, image_px, 3), brighter towards the light."""
    axis = (np.arange(image_px, dtype=np.float32) + 0.5) / image_px - 0.5
    slope = _GRADIENT * 255
    across, down = slope * math.cos(scene.light) * axis, slope * math.sin(scene.light) * axis
    base = np.array(BACKGROUNDS[scene.background], dtype=np.float32)
    return (down[:, None] + across[None, :])[:, :, None] + base


def _draw(canvas: Floats, item: SceneObject) -> None:
    """Blend one object into the canvas, in place."""
    size = canvas.shape[0]
    left, right = _span(item.x, item.radius, size)
    top, bottom = _span(item.y, item.radius, size)
    x = _samples(left, right, size) - item.x
    y = _samples(top, bottom, size) - item.y
    cosine, sine = math.cos(item.tilt), math.sin(item.tilt)
    u = cosine * x[None, :] + sine * y[:, None]
    v = cosine * y[:, None] - sine * x[None, :]
    inside = _inside(item.shape, u / item.radius, v / item.radius)
    covered = _coverage(inside)
    color = np.array(COLORS[item.color], dtype=np.float32)
    box = canvas[top:bottom, left:right]
    box += covered * (color - box)
    shaded = _shaded(item.texture, u, v)
    if shaded is not None:
        box -= _coverage(inside & shaded) * ((1 - _SHADE) * color)


def _span(center: float, radius: float, size: int) -> tuple[int, int]:
    """Return the first pixel and the one after the last that a disc may touch."""
    first = math.floor((center - radius) * size)
    last = math.ceil((center + radius) * size)
    return max(first, 0), min(last, size)


def _samples(first: int, last: int, size: int) -> Floats:
    """Return the coordinates of the sample points of some pixels, in image widths."""
    points = np.arange(first * _OVERSAMPLING, last * _OVERSAMPLING, dtype=np.float32)
    return (points + 0.5) / (size * _OVERSAMPLING)


def _coverage(mask: Mask) -> Floats:
    """Return float32 (height, width, 1): the fraction of each pixel's samples in the mask."""
    height, width = (side // _OVERSAMPLING for side in mask.shape)
    blocks = mask.reshape(height, _OVERSAMPLING, width * _OVERSAMPLING).sum(1, dtype=np.float32)
    counts: Floats = blocks.reshape(height, width, _OVERSAMPLING).sum(2, keepdims=True)
    return counts / _OVERSAMPLING**2


def _inside(shape: str, u: Floats, v: Floats) -> Mask:
    """Return which points are inside a shape, in coordinates where its disc has radius 1."""
    if shape == "circle":
        return np.less_equal(u * u + v * v, 0.92**2)
    if shape == "ring":
        squared = u * u + v * v
        return (squared <= 0.95**2) & (squared >= 0.5**2)
    if shape == "square":
        return np.less_equal(np.maximum(np.abs(u), np.abs(v)), 0.7)
    if shape == "diamond":
        return np.less_equal(np.abs(u) / 0.68 + np.abs(v), 1.0)
    if shape == "triangle":
        # Equilateral, apex up: its corners lie on the circle of radius 0.98.
        return (v <= 0.49) & (math.sqrt(3) * np.abs(u) - v <= 0.98)
    if shape == "cross":
        near, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
        return (near <= 0.28) & (far <= 0.9)
    if shape == "heart":
        # The sextic (x^2 + y^2 - 1)^3 = x^2 y^3; a disc of radius 1.25 around (0, 1/4) holds it.
        x, y = u * 1.27, 0.25 - v * 1.27
        radial = x * x + y * y - 1
        heart: Mask = radial * radial * radial <= x * x * y * y * y
        return heart
    return _inside_star(u, v)


def _inside_star(u: Floats, v: Floats) -> Mask:
    """Return which points are inside a five-pointed star with one point up.

    In each of its ten mirror-symmetric sectors the star is bounded by the line from its tip
    (radius 1) to its notch (radius 0.45, 36 degrees away).
    """
    sector = 2 * math.pi / 5
    angle = np.abs((np.arctan2(u, -v) + sector / 2) % sector - sector / 2)
    radius = np.hypot(u, v)
    notch_x, notch_y = 0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    return np.less_equal((along - 1) * notch_y, across * (notch_x - 1))


def _shaded(texture: str, u: Floats, v: Floats) -> Mask | None:
    """Return which points a texture darkens, None for none; u and v in image widths.

    The pattern has the same period on objects of every size: scaled down to a small object it
    would be finer than the pixels.
    """
    if texture == "solid":
        return None
    if texture == "striped":
        diagonal = (u + v) * (math.sqrt(0.5) / _PERIOD)
        stripes: Mask = diagonal - np.floor(diagonal) < 0.45
        return stripes
    across, down = u / _PERIOD, v / _PERIOD
    if texture == "dotted":
        across, down = across - np.rint(across), down - np.rint(down)
        dots: Mask = across * across + down * down <= 0.3**2
        return dots
    checks = np.floor(1.5 * across) + np.floor(1.5 * down)
    odd: Mask = checks % 2 == 1
    return odd
