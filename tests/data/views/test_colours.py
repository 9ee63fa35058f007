"""Colour operations against Pillow, the standard library's HSV and scipy's Gaussian."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage

from pictures import noise
from quadriga.data.images.decode import Box
from quadriga.data.views import batched, making
from quadriga.data.views.policies import ViewDraws

PICTURE = noise(37, 37, seed=3)
IMAGE = Image.fromarray(PICTURE)


def planes(picture=PICTURE):
    """The picture as float32 (3, height, width)."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32)


def both(name, picture, amount=None, base=None):
    """The results of an operation on one view and, beside another image, in a batch."""
    image = planes(picture)
    images = torch.from_numpy(np.stack([image[::-1], image]))
    if amount is None:
        results = getattr(making, name)(image), getattr(batched, name)(images)
    else:
        amounts = torch.tensor([0.7, amount]).reshape(2, 1, 1, 1)
        name_of = {"blend": "blend_"}.get(name, name)
        # The base of a blend, which changes images in place, is taken before.
        own = () if base is None else (base(making, image),)
        of_batch = () if base is None else (base(batched, images),)
        results = (
            getattr(making, name)(image, *own, amount),
            getattr(batched, name_of)(images, *of_batch, amounts),
        )
    return [results[0].transpose(1, 2, 0), results[1][1].permute(1, 2, 0).numpy()]


@pytest.mark.parametrize("factor", [0.0, 0.2, 1.0, 1.4, 1.8])
@pytest.mark.parametrize(
    ("enhancer", "base"),
    [
        (ImageEnhance.Brightness, lambda module, image: 0.0 * module.grey_of(image)),
        (ImageEnhance.Contrast, lambda module, image: module.mean_grey(image)),
        (ImageEnhance.Color, lambda module, image: module.grey_of(image)),
    ],
)
def test_blends_are_those_of_pillow_to_one_level(enhancer, base, factor):
    expected = np.asarray(enhancer(IMAGE).enhance(factor)).astype(int)
    for ours in both("blend", PICTURE, factor, base):
        assert np.abs(ours.round() - expected).max() <= 1


@pytest.mark.parametrize("turns", [-0.5, -0.21, -0.1, 0.0, 0.07, 0.2, 0.5])
def test_hue_is_rotated_as_in_the_standard_library(turns):
    picture = noise(12, 14, seed=1).copy()
    picture[0, :4] = [[0, 0, 0], [255, 255, 255], [9, 9, 9], [255, 0, 255]]
    expected = np.empty(picture.shape)
    for place in np.ndindex(picture.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(picture[place] / 255))
        expected[place] = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
    for ours in both("rotate_hue", picture, turns):
        np.testing.assert_allclose(ours, 255 * expected, rtol=0, atol=2e-3)


def test_hue_is_that_of_pillow_to_its_256_steps():
    """Pillow's hue has steps of 1/256 of a turn: 6 of the 255 levels of a full colour."""
    hue, saturation, value = IMAGE.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(0.1 * 255))
    expected = np.asarray(Image.merge("HSV", (turned, saturation, value)).convert("RGB"))
    for ours in both("rotate_hue", PICTURE, 0.1):
        difference = np.abs(ours - expected.astype(int))
        assert difference.max() <= 12
        assert difference.mean() < 3


def test_grey_is_that_of_pillow_to_one_level():
    expected = np.asarray(IMAGE.convert("L")).astype(int)
    for ours in both("grey_of", PICTURE):
        assert np.abs(ours[..., 0].round() - expected).max() <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_the_blur_is_a_gaussian(sigma):
    exact = ndimage.gaussian_filter(
        PICTURE.astype(float), (sigma, sigma, 0), mode="nearest", truncate=6
    )
    # Pillow approximates a Gaussian by three boxes.
    pillow = np.asarray(IMAGE.filter(ImageFilter.GaussianBlur(sigma))).astype(float)
    for ours in both("blur", PICTURE, sigma):
        assert np.abs(ours - exact).max() < 1
        assert np.abs(ours - pillow).mean() < 1.5


def test_a_blur_without_width_changes_nothing():
    images = torch.from_numpy(planes())[None]
    torch.testing.assert_close(
        batched.blur(images, torch.zeros(1, 1, 1, 1)), images, rtol=0, atol=1e-3
    )


def test_solarise_is_that_of_pillow():
    expected = np.asarray(ImageOps.solarize(IMAGE))
    ours = batched.solarise(torch.from_numpy(planes())).permute(1, 2, 0)
    np.testing.assert_array_equal(ours, expected)
    drawn = ViewDraws(Box(0, 0, 37, 37), solarised=True)
    view = making.make_view(PICTURE, drawn, 37, "bicubic")
    np.testing.assert_array_equal(view.transpose(1, 2, 0), expected)
