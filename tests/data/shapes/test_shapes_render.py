"""Drawn scenes: areas against geometry, and everything named recovered from the pixels alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from quadriga.data.shapes.dataset import ShapesConfig
from quadriga.data.shapes.render import render
from quadriga.data.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
)

PX = 128

# Areas in units of the squared radius of the enclosing disc.
AREAS = {
    "circle": math.pi * 0.92**2,
    "square": 1.4**2,
    "triangle": 3 * math.sqrt(3) / 4 * 0.98**2,
    "diamond": 2 * 0.68,
    "star": 5 * 0.45 * math.sin(math.pi / 5),
    "cross": 4 * 0.9 * 0.56 - 0.56**2,
    "ring": math.pi * (0.95**2 - 0.5**2),
    # Area of the sextic heart curve, from integration of its polar form.
    "heart": 3.6619 / 1.27**2,
}


def single(shape: str, texture: str = "solid", tilt: float = 0.1) -> Scene:
    item = SceneObject(
        shape=shape,
        color="yellow",
        size="large",
        texture=texture,
        row=1,
        column=1,
        x=0.51,
        y=0.47,
        radius=0.148,
        tilt=tilt,
    )
    return Scene(objects=(item,), background="black", light=0.0)


def empty(scene: Scene) -> Scene:
    return Scene(objects=(), background=scene.background, light=scene.light)


def saturated(pixels: np.ndarray) -> np.ndarray:
    values = pixels.astype(np.int64)
    return values.max(-1) - values.min(-1) > 25


@pytest.mark.parametrize("shape", SHAPES)
def test_area_is_that_of_the_shape(shape):
    scene = single(shape)
    drawn, bare = (render(s, PX).astype(float) for s in (scene, empty(scene)))
    covered = (drawn - bare)[..., 0] / (COLORS["yellow"][0] - bare[..., 0])
    assert covered.sum() / (0.148 * PX) ** 2 == pytest.approx(AREAS[shape], rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tilt", [-0.17, 0.0, 0.17])
def test_shape_stays_inside_its_disc(shape, tilt):
    rows, columns = np.nonzero(saturated(render(single(shape, tilt=tilt), PX)))
    distance = np.hypot((columns + 0.5) / PX - 0.51, (rows + 0.5) / PX - 0.47)
    assert distance.max() < 0.148 + 0.75 / PX


def test_shapes_and_textures_are_all_different_pictures():
    pictures = {(s, t): render(single(s, t), PX).astype(int) for s in SHAPES for t in TEXTURES}
    names = list(pictures)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            differing = np.abs(pictures[first] - pictures[second]).max(-1) > 60
            assert differing.sum() > 0.06 * (0.148 * PX) ** 2, (first, second)


def test_texture_darkens_but_never_hides_the_color():
    for texture in TEXTURES[1:]:
        plain, drawn = (render(single("square", t, 0.0), PX) for t in ("solid", texture))
        inner = np.s_[50:70, 55:75, 0]
        assert drawn[inner].min() == pytest.approx(plain[inner].min() / 2, abs=1)
        assert (drawn[inner] == COLORS["yellow"][0]).mean() > 0.3


def test_supersampling_is_antialiasing():
    coarse = render(single("circle"), 32).astype(float)
    fine = render(single("circle"), 256).astype(float).reshape(32, 8, 32, 8, 3).mean((1, 3))
    np.testing.assert_allclose(coarse, fine, atol=14)


def color_of(pixels: np.ndarray, component: np.ndarray) -> str:
    inner = pixels[ndimage.binary_erosion(component, np.ones((3, 3)))].astype(float)
    bright = inner[inner.sum(1) >= np.quantile(inner.sum(1), 0.8)].mean(0)
    return min(COLORS, key=lambda name: np.abs(bright - COLORS[name]).sum())


def size_of(component: np.ndarray) -> str:
    points = np.argwhere(component ^ ndimage.binary_erosion(component)).astype(float)
    diameter = np.linalg.norm(points[:, None] - points[None], axis=-1).max() / PX
    # The farthest points of a shape are 0.85 to 1 diameters of its disc apart.
    return "small" if diameter < 0.162 else "medium" if diameter < 0.2245 else "large"


def position_of(component: np.ndarray) -> str:
    rows, columns = np.nonzero(component)
    row, column = ((side.min() + side.max() + 1) / 2 / PX * 3 for side in (rows, columns))
    return POSITIONS[int(row)][int(column)]


def test_everything_named_can_be_read_off_the_pixels():
    data = ShapesConfig(image_px=PX, max_objects=6, count=60).build("train")
    for index in range(len(data)):
        pixels, scene = data.read(index).data, data.scene(index)
        labels, count = ndimage.label(saturated(pixels), np.ones((3, 3)))
        assert count == len(scene.objects)
        components = [labels == i + 1 for i in range(count)]
        seen = {(position_of(c), size_of(c), color_of(pixels, c)) for c in components}
        assert seen == {(o.position, o.size, o.color) for o in scene.objects}
        bare = np.median(pixels[labels == 0], axis=0)
        nearest = min(BACKGROUNDS, key=lambda name: np.abs(bare - BACKGROUNDS[name]).sum())
        assert nearest == scene.background


def test_vocabulary_of_sizes_ascends():
    assert list(SIZES.values()) == sorted(SIZES.values())
