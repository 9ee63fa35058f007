import io
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from errors import refuses
from pictures import encoded, noise
from quadriga.contracts import UnreadableSample
from quadriga.data.images import decode
from quadriga.data.images.decode import Box, OpenedImage, reduced_box, reduction, resize
from quadriga.data.images.record import PLAIN, Decoding, ImageRecord

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


REDUCED = Decoding(reduced=True)


def opened(data, fast=True, decoding=PLAIN):
    return OpenedImage(ImageRecord(data, None, "sample", decoding), fast)


def pillow_view(image, box, size, interpolation="bicubic"):
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    # Cut first: with `box` Pillow's filter would look beyond the box's edges.
    view = image.crop(corners).resize((size, size), FILTERS[interpolation])
    return np.asarray(view).transpose(2, 0, 1).astype(int)


def decoded(data, fast=True):
    image = opened(data, fast)
    return image.crop(image.whole, 8, 8)


def gradient(height, width):
    """Red is the column, green the row: a view's values tell where it was cut."""
    columns, rows = np.arange(width) * 255 / width, np.arange(height) * 255 / height
    red, green = np.broadcast_to(columns, (height, width)), np.broadcast_to(rows, (width, height)).T
    return np.stack([red, green, np.full((height, width), 128.0)], -1).round().astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [7, 24, 60])
def test_resize_is_pillows_to_one_level(interpolation, size):
    pixels = noise(40, 53, cells=2)
    ours = resize(pixels[5:33, 4:49], size, size, interpolation).astype(int)
    theirs = pillow_view(Image.fromarray(pixels), Box(5, 4, 28, 45), size, interpolation)
    assert ours.shape == (3, size, size)
    assert np.abs(ours - theirs).max() <= 1


def test_resize_to_the_same_size_copies():
    pixels = noise(9, 11)
    np.testing.assert_array_equal(resize(pixels, 9, 11, "bicubic"), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("box", [Box(0, 0, 75, 101), Box(11, 20, 40, 33)])
def test_fast_and_pillow_path_are_bit_equal_at_full_size(box):
    data = encoded(noise(75, 101), quality=85, subsampling=2)
    np.testing.assert_array_equal(opened(data).crop(box), opened(data, fast=False).crop(box))


@pytest.mark.parametrize(("shape", "eighths"), [((203, 301), 4), ((405, 410), 2), ((805, 830), 1)])
def test_reduced_decoding_keeps_the_geometry(shape, eighths):
    data = encoded(gradient(*shape))
    image = opened(data, decoding=REDUCED)
    box = Box(3, 5, shape[0] - 7, shape[1] - 11)
    size = min(box.height, box.width) * eighths // 8
    assert reduction(box, size, size) == eighths
    inner = reduced_box(box, eighths)
    pixels = image.crop(box, size, size)
    assert pixels.shape == (inner.height, inner.width, 3)
    # What Pillow makes of the full-size image and exactly the box that was decoded.
    factor = 8 / eighths
    exact = Image.open(io.BytesIO(data)).resize(
        (size, size),
        Image.Resampling.BICUBIC,
        box=(
            inner.left * factor,
            inner.top * factor,
            min((inner.left + inner.width) * factor, shape[1]),
            min((inner.top + inner.height) * factor, shape[0]),
        ),
    )
    expected = np.asarray(exact).transpose(2, 0, 1).astype(int)
    assert np.abs(resize(pixels, size, size, "bicubic") - expected).max() <= 3


def test_reduced_decoding_is_close_to_the_full_one():
    data = encoded(noise(400, 402, cells=25))
    box = Box(8, 16, 384, 376)
    fast = opened(data, decoding=REDUCED).crop(box, 64, 64)
    fast = resize(fast, 64, 64, "bicubic").astype(int)
    full = pillow_view(Image.open(io.BytesIO(data)), box, 64)
    assert reduction(box, 64, 64) == 2
    assert np.abs(fast - full).mean() < 1.0
    assert np.abs(fast - full)[:, 2:-2, 2:-2].max() <= 8


def test_every_pixel_is_decoded_unless_a_config_says_otherwise():
    data, box = encoded(noise(400, 402)), Box(9, 17, 384, 376)
    whole = np.asarray(Image.open(io.BytesIO(data)))[9:393, 17:393]
    np.testing.assert_array_equal(opened(data).crop(box, 64, 64), whole)
    assert opened(data, decoding=REDUCED).crop(box, 64, 64).shape[0] < 384


@settings(deadline=None)
@given(st.data())
def test_reduced_boxes_cover_the_output_and_stay_inside(data):
    height, width = data.draw(st.integers(1, 999)), data.draw(st.integers(1, 999))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = Box(
        top,
        left,
        data.draw(st.integers(1, height - top)),
        data.draw(st.integers(1, width - left)),
    )
    size = data.draw(st.integers(1, 300))
    eighths = reduction(box, size, size)
    inner = reduced_box(box, eighths)
    assert inner.top >= 0
    assert inner.left >= 0
    assert inner.top + inner.height <= -(-height * eighths // 8)
    assert inner.left + inner.width <= -(-width * eighths // 8)
    if eighths == 8:
        assert inner == box
    else:
        assert min(inner.height, inner.width) >= size
    for edge, original in (
        (inner.top, box.top),
        (inner.left, box.left),
        (inner.top + inner.height, box.top + box.height),
        (inner.left + inner.width, box.left + box.width),
    ):
        assert abs(edge - original * eighths / 8) <= 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([1, 2, 4]))
def test_the_decoder_reduces_by_what_was_asked(height, width, eighths):
    pixels = decode._decode_jpeg(encoded(noise(height, width)), height, width, eighths)
    assert pixels is not None
    assert pixels.shape[:2] == (-(-height * eighths // 8), -(-width * eighths // 8))


def test_arrays_need_no_decoding():
    pixels = noise(20, 30)
    pixels.setflags(write=False)
    crop = opened(pixels).crop(Box(2, 3, 10, 12), 5, 5)
    np.testing.assert_array_equal(crop, pixels[2:12, 3:15])
    assert resize(crop, 5, 5, "bicubic").shape == (3, 5, 5)


def test_odd_modes_become_rgb():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    thrice = np.repeat(grey[..., None], 3, -1)
    image = Image.fromarray(grey)
    files = {
        "grey": encoded(image, "PNG"),
        "grey with alpha": encoded(image.convert("LA"), "PNG"),
        "palette": encoded(image.convert("P"), "PNG"),
        "palette with transparency": encoded(image.convert("P"), "PNG", transparency=bytes(256)),
        "rgba": encoded(image.convert("RGBA"), "PNG"),
        "16 bits": encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        "webp": encoded(image.convert("RGB"), "WEBP", lossless=True),
    }
    for name, data in files.items():
        read = opened(data)
        np.testing.assert_array_equal(read.crop(read.whole), thrice, err_msg=name)


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpegs_that_are_not_ycbcr_equal_pillows(mode):
    data = encoded(Image.fromarray(noise(33, 40)).convert(mode), "JPEG", subsampling=-1)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    read = opened(data)
    np.testing.assert_array_equal(read.crop(read.whole), expected)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("keep", [0, 1, 3, 30, 0.3, 0.9, -2])
def test_truncated_jpegs_are_unreadable(fast, keep):
    data = encoded(noise(120, 160, cells=2))
    cut = data[: int(keep * len(data)) if isinstance(keep, float) else keep]
    with refuses("sample", error=UnreadableSample):
        decoded(cut, fast)


def test_truncated_jpegs_are_unreadable_at_reduced_size():
    data = encoded(noise(320, 320, cells=2))
    image = opened(data[: len(data) // 2], decoding=REDUCED)
    with refuses("truncated", error=UnreadableSample):
        image.crop(image.whole, 40, 40)


def test_what_turbojpeg_refuses_pillow_decides():
    data = encoded(noise(64, 64, cells=2))
    spoiled = data[:-2] + b"\0" * 20 + data[-2:]
    with refuses("extraneous", error=ValueError):
        simplejpeg.decode_jpeg(spoiled)
    image = opened(spoiled)
    expected = np.asarray(Image.open(io.BytesIO(spoiled)).convert("RGB"))
    np.testing.assert_array_equal(image.crop(image.whole), expected)


@pytest.mark.parametrize("data", [b"", b"garbage" * 9, b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_garbage_is_unreadable(data):
    with refuses("sample", error=UnreadableSample):
        opened(data)


def test_truncated_png_is_unreadable():
    data = encoded(noise(50, 50, cells=1), "PNG")
    with refuses("sample", error=UnreadableSample):
        decoded(data[: len(data) // 2])


@pytest.mark.parametrize(("kind", "side"), [("JPEG", 17_000), ("PNG", 20_000)])
def test_decompression_bombs_are_unreadable(kind, side):
    data = bytearray(encoded(noise(16, 16), kind))
    if kind == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = side.to_bytes(2, "big") * 2
    else:
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with refuses("pixels", error=UnreadableSample):
        opened(bytes(data))
