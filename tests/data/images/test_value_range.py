"""Images of more than 8 bits per channel: scaled by the stated range, or refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from errors import refuses
from pictures import encoded, write
from quadriga.contracts import UnreadableSample
from quadriga.data.images.decode import OpenedImage
from quadriga.data.images.folder import ImageFolderConfig
from quadriga.data.images.record import Decoding, ImageRecord
from quadriga.data.views.crops import ImageViewsConfig

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = np.repeat(LEVELS[..., None], 3, -1)


def png_16(values):
    """A PNG of 16 bits per channel; Pillow writes none with colours."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def deep(values, kind="TIFF", **options):
    return encoded(Image.fromarray(values), kind, **options)


def pgm(largest, values):
    return b"P5\n16 16\n%d\n" % largest + values.astype(">u2").tobytes()


def decoded(data, value_range=None):
    image = OpenedImage(ImageRecord(data, None, "cat/9.tif", Decoding(value_range)))
    first = image.crop(image.whole)
    np.testing.assert_array_equal(image.crop(image.whole), first)
    return first


TWELVE = LEVELS.astype(np.uint16) * 16
FULL = LEVELS.astype(np.uint16) * 257
UNSTATED = {
    "float32 in 0..1": (deep(LEVELS.astype(np.float32) / 255), "[0,1]", (0, 1)),
    "int32 in 0..255": (deep(LEVELS.astype(np.int32)), "[0,255]", (0, 255)),
    "int32, negative": (deep(LEVELS.astype(np.int32) - 128), "[-128,255]", (-128, 127)),
    "12 bits in a PNG": (deep(TWELVE, "PNG"), "[0,4095]", (0, 4080)),
    "12 bits in a TIFF": (deep(TWELVE), "[0,4095]", (0, 4080)),
    "12 bits, compressed": (deep(TWELVE, compression="tiff_deflate"), "[0,4095]", (0, 4080)),
    "12 bits under 65535": (pgm(65535, TWELVE), "[0,4095]", (0, 4080)),
}


@pytest.mark.parametrize("name", UNSTATED)
def test_values_of_no_stated_range_are_refused_by_name(name):
    data, proposed, _ = UNSTATED[name]
    with refuses("cat/9.tif", f"data.value_range={proposed}", error=UnreadableSample):
        decoded(data)


@pytest.mark.parametrize("name", UNSTATED)
def test_a_stated_range_makes_them_the_8_bit_image(name):
    data, _, value_range = UNSTATED[name]
    np.testing.assert_array_equal(decoded(data, value_range), RGB)


@pytest.mark.parametrize(
    "data",
    [
        deep(FULL, "PNG"),
        deep(FULL),
        deep(FULL, compression="tiff_deflate"),
        png_16(np.repeat(FULL[..., None], 3, -1)),
        pgm(65535, FULL),
        pgm(4080, TWELVE),
        b"P6\n16 16\n4080\n" + np.repeat(TWELVE[..., None], 3, -1).astype(">u2").tobytes(),
        encoded(Image.fromarray(LEVELS), "TIFF"),
    ],
)
def test_what_uses_all_bits_or_says_its_range_needs_none(data):
    np.testing.assert_array_equal(decoded(data), RGB)
    np.testing.assert_array_equal(decoded(data, (0, 65535)), RGB)


def test_values_beyond_the_range_are_black_and_white():
    found = decoded(deep(np.array([[-5.0, 0.0, 0.5, 1.0, 7.0]], np.float32)), (0, 1))
    assert found[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_what_is_not_finite_is_unreadable():
    with refuses("cat/9.tif", "finite", error=UnreadableSample):
        decoded(deep(np.array([[0.0, np.nan]], np.float32)), (0, 1))


def test_colours_of_12_bits_in_16_are_refused():
    data = png_16(np.repeat(TWELVE[..., None], 3, -1))
    with refuses("cat/9.tif", "data.value_range=[0,4095]", error=UnreadableSample):
        decoded(data)
    with refuses("cat/9.tif", "8 bits", error=UnreadableSample):
        decoded(data, (0, 4095))
    assert decoded(data, (0, 65535)).max() == 15


def test_one_bit_is_black_and_white():
    flags = (LEVELS % 2 == 0)[..., None].repeat(3, -1)
    data = encoded(Image.fromarray(LEVELS % 2 == 0), "PNG")
    np.testing.assert_array_equal(decoded(data), flags * np.uint8(255))


def test_a_folder_is_looked_at_before_it_is_trained_on(tmp_path):
    root = tmp_path / "train"
    for i in range(3):
        write(root / "a" / f"{i}.tif", deep(LEVELS.astype(np.float32) / 255))
        write(root / "b" / f"{i}.png", encoded(RGB, "PNG"))
    with refuses("data.value_range", "[0,1]", root / "a" / "0.tif"):
        ImageFolderConfig(root=tmp_path).build("train").check()
    config = ImageFolderConfig(root=tmp_path, value_range=(0, 1))
    dataset = config.build("train")
    dataset.check()
    view = ImageViewsConfig(image_px=8).build("test")
    first, last = (view.sample(dataset.read(i), 0)["image"] for i in (0, len(dataset) - 1))
    np.testing.assert_array_equal(first, last)


def test_a_folder_of_damaged_files_is_refused(tmp_path):
    for name in "ab":
        write(tmp_path / name / "0.png", b"no image")
        write(tmp_path / name / "1.png", b"no image")
    with refuses("data.root", tmp_path / "a"):
        ImageFolderConfig(root=tmp_path).build("train").check()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[1,0]", "value_range"),
        ("[1,1]", "value_range"),
        ("[0,1e300]", "value_range.1"),
        ("[0,nan]", "value_range"),
    ],
)
def test_invalid_ranges(tmp_path, text, field):
    with refuses(field):
        ImageFolderConfig(root=tmp_path).override({"value_range": text})


def test_an_eps_is_no_image_whatever_it_is_called(monkeypatch):
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "EPS")

    def started(*arguments, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.check_call", started)
    monkeypatch.setattr("subprocess.Popen", started)
    with refuses("cat/9.tif", error=UnreadableSample):
        decoded(out.getvalue())


def test_pixels_are_bounded_by_the_config(tmp_path):
    write(tmp_path / "a" / "0.png", encoded(RGB, "PNG"))
    config = ImageFolderConfig(root=tmp_path, max_image_pixels=255)
    with refuses("0.png", "16 x 16", "data.max_image_pixels", error=UnreadableSample):
        OpenedImage(config.build("train").read(0))
    OpenedImage(config.override({"max_image_pixels": 256}).build("train").read(0))
    with refuses("max_image_pixels"):
        config.override({"max_image_pixels": 10**9})
