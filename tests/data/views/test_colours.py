"""Colour operations against Pillow, the standard library's HSV and scipy's Gaussian."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage

from pictures import noise
from quadriga.data.views.colours import (
    blend_,
    blur,
    blur_by_shifts,
    grey_of,
    mean_grey,
    rotate_hue,
    solarise,
)

PICTURE = noise(37, 52, seed=3)
IMAGE = Image.fromarray(PICTURE)


def planes(picture=PICTURE):
    """The picture as float32 (1, 3, height, width)."""
    return torch.from_numpy(picture.transpose(2, 0, 1).copy()).float()[None]


def levels(images):
    """A float image as int (height, width, channels)."""
    return images[0].round().permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("factor", [0.0, 0.2, 1.0, 1.4, 1.8])
@pytest.mark.parametrize(
    ("enhancer", "base"),
    [
        (ImageEnhance.Brightness, lambda images: 0.0),
        (ImageEnhance.Contrast, mean_grey),
        (ImageEnhance.Color, grey_of),
    ],
)
def test_blends_are_those_of_pillow_to_one_level(enhancer, base, factor):
    images = planes()
    ours = levels(blend_(images, base(images), factor))
    expected = np.asarray(enhancer(IMAGE).enhance(factor)).astype(int)
    assert np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize("turns", [-0.5, -0.21, -0.1, 0.0, 0.07, 0.2, 0.5])
def test_hue_is_rotated_as_in_the_standard_library(turns):
    picture = noise(12, 14, seed=1).copy()
    picture[0, :4] = [[0, 0, 0], [255, 255, 255], [9, 9, 9], [255, 0, 255]]
    expected = np.empty(picture.shape)
    for place in np.ndindex(picture.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(picture[place] / 255))
        expected[place] = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
    ours = rotate_hue(planes(picture), turns)[0].permute(1, 2, 0)
    np.testing.assert_allclose(ours, 255 * expected, rtol=0, atol=1e-3)


def test_hue_is_that_of_pillow_to_its_256_steps():
    """Pillow's hue has steps of 1/256 of a turn: 6 of the 255 levels of a full colour."""
    hue, saturation, value = IMAGE.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(0.1 * 255))
    expected = np.asarray(Image.merge("HSV", (turned, saturation, value)).convert("RGB"))
    difference = np.abs(levels(rotate_hue(planes(), 0.1)) - expected.astype(int))
    assert difference.max() <= 12
    assert difference.mean() < 3


def test_grey_is_that_of_pillow_to_one_level():
    expected = np.asarray(IMAGE.convert("L")).astype(int)
    assert np.abs(levels(grey_of(planes()))[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_the_blur_is_a_gaussian(sigma):
    square = PICTURE[:37, :37]
    exact = ndimage.gaussian_filter(
        square.astype(float), (sigma, sigma, 0), mode="nearest", truncate=6
    )
    # Pillow approximates a Gaussian by three boxes.
    pillow = Image.fromarray(square).filter(ImageFilter.GaussianBlur(sigma))
    by_shifts = blur_by_shifts(planes(square), sigma)
    # In a batch, beside an image that is not blurred.
    both = blur(planes(square).expand(2, -1, -1, -1), torch.tensor([0, sigma]).reshape(2, 1, 1, 1))
    torch.testing.assert_close(both[:1], planes(square), rtol=0, atol=1e-3)
    for result in (by_shifts, both[1:]):
        ours = result[0].permute(1, 2, 0).numpy()
        assert np.abs(ours - exact).max() < 1
        assert np.abs(ours - np.asarray(pillow).astype(float)).mean() < 1.5


def test_solarise_is_that_of_pillow():
    np.testing.assert_array_equal(levels(solarise(planes())), np.asarray(ImageOps.solarize(IMAGE)))
