"""Each operation against its formula in numpy, or against Pillow's own function."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy import ndimage

from pictures import noise
from quadriga.data.views.augmentation import CHOICES
from quadriga.data.views.operations import OPERATIONS, Drawn, Filter, apply

FILL = (10, 200, 90)
PICTURE = noise(37, 52, seed=3)


def done(name, amount=0.0, picture=PICTURE, kind=Filter.BICUBIC):
    """The operation on an interleaved picture."""
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
    before = planes.copy()
    result = apply(planes, [Drawn(name, amount, kind, FILL)])
    assert result.shape == planes.shape
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(planes, before)
    return result.transpose(1, 2, 0)


def test_nothing_drawn_changes_nothing():
    planes = PICTURE.transpose(2, 0, 1)
    assert apply(planes, []) is planes


@pytest.mark.parametrize("bits", range(9))
def test_posterize_keeps_the_upper_bits(bits):
    step = 2 ** (8 - bits)
    np.testing.assert_array_equal(done("posterize", bits), PICTURE.astype(int) // step * step)


@pytest.mark.parametrize("threshold", [0, 1, 100, 255, 256])
def test_solarize_inverts_from_the_threshold_on(threshold):
    expected = np.where(PICTURE >= threshold, 255 - PICTURE, PICTURE)
    np.testing.assert_array_equal(done("solarize", threshold), expected)


@pytest.mark.parametrize("amount", [0, 45, 128])
def test_solarize_add_adds_to_the_dark_half(amount):
    wide = PICTURE.astype(int)
    expected = np.where(wide < 128, np.minimum(wide + amount, 255), wide)
    np.testing.assert_array_equal(done("solarize_add", amount), expected)


def test_invert():
    np.testing.assert_array_equal(done("invert"), 255 - PICTURE)


def test_auto_contrast_stretches_each_channel():
    narrow = (PICTURE // 3 + np.array([20, 60, 100])).astype(np.uint8)
    flat = narrow.astype(float)
    low, high = flat.min((0, 1)), flat.max((0, 1))
    expected = (flat - low) * 255 / (high - low)
    assert np.abs(done("auto_contrast", picture=narrow) - expected).max() <= 1


def test_equalize_makes_the_histograms_flat():
    """The value v becomes the share of the pixels below it, in the rounding of the definition."""
    ours = done("equalize")
    for channel in range(3):
        plane = PICTURE[..., channel]
        counts = np.bincount(plane.ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        table = (step // 2 + np.concatenate([[0], np.cumsum(counts)[:-1]])) // step
        np.testing.assert_array_equal(ours[..., channel], np.minimum(table, 255)[plane])


def greys(picture):
    """ITU-R 601-2 luma."""
    return picture @ np.array([0.299, 0.587, 0.114])


def test_grey():
    ours = done("grey")
    assert np.abs(ours - greys(PICTURE)[..., None]).max() <= 1
    assert (ours == ours[..., :1]).all()


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 1.37, 1.9])
def test_blends_are_what_they_are_with_pillow(factor):
    image = Image.fromarray(PICTURE)
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "colour": ImageEnhance.Color,
        "sharpness": ImageEnhance.Sharpness,
    }
    for name, enhancer in enhancers.items():
        expected = np.asarray(enhancer(image).enhance(factor)).astype(int)
        assert np.abs(done(name, factor) - expected).max() <= 1, name


@pytest.mark.parametrize("factor", [0.1, 0.7, 1.6])
def test_blends_are_what_their_formula_says(factor):
    wide = PICTURE.astype(float)
    smooth = np.stack(
        [
            ndimage.convolve(wide[..., c], np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13)
            for c in range(3)
        ],
        -1,
    )
    smooth[[0, -1]], smooth[:, [0, -1]] = wide[[0, -1]], wide[:, [0, -1]]
    base = {
        "brightness": np.zeros_like(wide),
        "contrast": np.full_like(wide, round(greys(PICTURE).mean())),
        "colour": np.repeat(greys(PICTURE)[..., None], 3, 2),
        "sharpness": smooth,
    }
    for name, other in base.items():
        expected = (other + factor * (wide - other)).clip(0, 255)
        # The base is rounded to whole levels before the blend, and the blend after it.
        assert np.abs(done(name, factor) - expected).max() <= 2, name


def read_at(picture, columns, rows, kind):
    """Read between pixels as Pillow's transforms do: cubic with a = -1, edges repeated."""
    height, width = picture.shape[:2]
    x, y = columns - 0.5, rows - 0.5
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    total = np.zeros((*x.shape, 3))
    for j in range(-1, 3):
        for i in range(-1, 3):
            weight = kernel(x - (x0 + i), kind) * kernel(y - (y0 + j), kind)
            value = picture[(y0 + j).clip(0, height - 1), (x0 + i).clip(0, width - 1)]
            total += weight[..., None] * value
    outside = (columns < 0) | (columns >= width) | (rows < 0) | (rows >= height)
    return np.where(outside[..., None], np.array(FILL), total.clip(0, 255)), outside


def kernel(t, kind):
    t = np.abs(t)
    if kind == Filter.BILINEAR:
        return np.maximum(0, 1 - t)
    near, far = t**3 - 2 * t**2 + 1, -(t**3) + 5 * t**2 - 8 * t + 4
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def places_of(name, amount):
    """Where each pixel of the result comes from, in the coordinates of pixel corners."""
    height, width = PICTURE.shape[:2]
    rows, columns = np.mgrid[:height, :width] + 0.5
    if name == "rotate":
        angle = math.radians(amount)
        x, y = columns - width / 2, rows - height / 2
        # Anticlockwise on the screen, where y goes down.
        return (
            math.cos(angle) * x - math.sin(angle) * y + width / 2,
            math.sin(angle) * x + math.cos(angle) * y + height / 2,
        )
    moved = {
        "shear_x": (columns + amount * rows, rows),
        "shear_y": (columns, rows + amount * columns),
        "translate_x": (columns + amount * width, rows),
        "translate_y": (columns, rows + amount * height),
    }
    return moved[name]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]),
    st.floats(-1, 1),
    st.sampled_from([Filter.BICUBIC, Filter.BILINEAR]),
)
def test_geometry(name, share, kind):
    amount = share * {"rotate": 30.0}.get(name, 0.45)
    columns, rows = places_of(name, amount)
    expected, outside = read_at(PICTURE, columns, rows, kind)
    difference = np.abs(done(name, amount, kind=kind) - expected).max(-1)
    # A place that falls on the edge itself may count as inside or outside.
    height, width = outside.shape
    edge = np.minimum.reduce([abs(columns), abs(columns - width), abs(rows), abs(rows - height)])
    assert difference[edge > 1e-3].max() <= 1 + 1e-9


def test_blur_is_gaussian():
    ours = done("blur", 1.5)
    expected = np.stack(
        [ndimage.gaussian_filter(PICTURE[..., c].astype(float), 1.5) for c in range(3)], -1
    )
    inner = (slice(6, -6), slice(6, -6))
    # Pillow composes it of box filters.
    assert np.abs(ours[inner] - expected[inner]).max() <= 6
    assert np.abs(ours[inner] - expected[inner]).mean() < 1


def test_operations_go_one_after_another():
    planes = np.ascontiguousarray(PICTURE.transpose(2, 0, 1))
    first, second = Drawn("rotate", 20.0, Filter.BILINEAR, FILL), Drawn("solarize", 90.0)
    np.testing.assert_array_equal(
        apply(planes, [first, second]), apply(apply(planes, [first]), [second])
    )
    assert (apply(planes, [first, second]) != apply(planes, [second, first])).any()


@pytest.mark.parametrize("name", OPERATIONS)
def test_grey_stays_grey_and_small_images_work(name):
    """Three equal channels stay equal, where the fill is grey too."""
    grey = np.repeat(noise(24, 24)[..., :1], 3, 2)
    planes = np.ascontiguousarray(grey.transpose(2, 0, 1))
    result = apply(planes, [Drawn(name, 0.7, fill=(7, 7, 7))])
    assert (result == result[:1]).all()
    one = apply(np.full((3, 1, 1), 9, np.uint8), [Drawn(name, 0.7)])
    assert one.shape == (3, 1, 1)


def test_every_choice_is_an_operation():
    assert len(CHOICES) == 15
    assert CHOICES.keys() <= set(OPERATIONS)
