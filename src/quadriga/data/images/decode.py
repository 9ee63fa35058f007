"""From an encoded image to uint8 pixels of one crop at one size.

Baseline: Pillow decodes everything. Fast path: JPEG through TurboJPEG, which gives the same pixels.
Where a config asks for it, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size by dropping DCT
coefficients, as long as the crop stays at least as large as the output. The resize is torch's
antialiased one on uint8, the same for all.

Images of 8 bits per channel or fewer are taken as they are. Those with more are scaled to 8 bits:
black and white are the two values of `Decoding.value_range`, or 0 and 65535 where an image uses the
upper two of its 16 bits, which 10-, 12- and 14-bit data does not. Any other is refused, since the
file does not say what white is, and a guess would train on black images.

The orientation tag of EXIF is ignored: pixels are taken as they are stored, which is what the
published ImageNet recipes are trained and evaluated with.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from typing import Any, Literal, NamedTuple, final

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch.nn import functional

from quadriga.contracts import UnreadableSample
from quadriga.data.images.record import ImageRecord

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "DIB", "GIF", "PPM", "AVIF", "JPEG2000", "HEIF")
"""Formats that are decoded, as Pillow names them; AVIF from Pillow 11.3 on, HEIF with an extra.
What a file is called does not matter: Pillow's other readers, some of which start programs (EPS),
are never asked."""

_HEIF_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")

Interpolation = Literal["bicubic", "bilinear"]

_EIGHTHS = (1, 2, 4)
# TurboJPEG also offers 3/8, 5/8, 6/8 and 7/8, without vector code: slower than a full decode.


class Box(NamedTuple):
    """A rectangle of whole pixels of the original image."""

    top: int
    left: int
    height: int
    width: int


@final
class OpenedImage:
    """An image whose header has been read; its pixels are decoded when a crop is asked for."""

    def __init__(self, record: ImageRecord, fast: bool = True) -> None:
        """Read the header.

        Args:
            record: The image.
            fast: Whether JPEG may go through TurboJPEG.

        Raises:
            UnreadableSample: It is no image, damaged, or has too many pixels.
        """
        self._record = record
        self._pillow: Image.Image | None = None
        self._pixels: npt.NDArray[np.uint8] | None = None
        self._eighths = 0
        data = record.data
        size: tuple[int, int] | None
        if isinstance(data, np.ndarray):
            size = data.shape[0], data.shape[1]
        else:
            size = _jpeg_size(data) if fast else None
            if size is None:
                self._pillow = _open_with_pillow(data, record.name)
                size = self._pillow.height, self._pillow.width
        self.height, self.width = size
        most = record.decoding.max_pixels
        if self.height * self.width > most:
            raise UnreadableSample(
                f"{record.name}: {self.width} x {self.height} pixels are more than "
                f"data.max_image_pixels={most}"
            )

    def check_values(self) -> None:
        """Decode the image if it has more than 8 bits per channel, to see that it can be scaled.

        Raises:
            UnknownRange: Its values have no known range.
            UnreadableSample: The data is damaged.
        """
        if self._pillow is not None and _bits_of_mode(self._pillow) != 8:
            self.crop(self.whole)

    @property
    def whole(self) -> Box:
        """The whole image as a box."""
        return Box(0, 0, self.height, self.width)

    def crop(
        self, box: Box, height: int = 0, width: int = 0
    ) -> UInt8[np.ndarray, "crop_height crop_width 3"]:
        """Decode the pixels of `box`, where `Decoding.reduced` allows it at 1/2, 1/4 or 1/8 size.

        Args:
            box: A rectangle inside the image.
            height: The crop will be resized to this height; 0 asks for every pixel.
            width: The same for the width.

        Returns:
            uint8 RGB. At reduced size the edges of the box fall on the nearest decoded pixel, so
            each is off by at most half of one, which is at most half a pixel of the output.

        Raises:
            UnreadableSample: The data is damaged.
        """
        data = self._record.data
        if isinstance(data, np.ndarray):
            return _cut(data, box)
        if self._pillow is None:
            eighths = reduction(box, height, width) if self._record.decoding.reduced else 8
            if self._eighths < eighths:
                # Kept, since several crops of an image share its decoding.
                self._pixels = _decode_jpeg(data, self.height, self.width, eighths)
                self._eighths = eighths
            if self._pixels is not None:
                return _cut(self._pixels, reduced_box(box, self._eighths))
            # What TurboJPEG finds fault with is for Pillow to decide, so that one library decides
            # what is readable.
            self._pillow = _open_with_pillow(data, self._record.name)
        if self._pixels is None:
            # Kept, also since a decoded Pillow image no longer says how its file held the values.
            self._pixels = _pixels_with_pillow(self._pillow, self._record)
        return _cut(self._pixels, box)


def reduction(box: Box, height: int, width: int) -> int:
    """Return the smallest usable number of eighths at which `box` still covers the output.

    Args:
        box: A rectangle of the original image.
        height: Output height; 0 for no reduction.
        width: Output width.

    Returns:
        1, 2, 4 or 8.
    """
    if height and width:
        for eighths in _EIGHTHS:
            if box.height * eighths >= 8 * height and box.width * eighths >= 8 * width:
                return eighths
    return 8


def reduced_box(box: Box, eighths: int) -> Box:
    """Return `box` in the pixels of the image decoded at ``eighths / 8`` of its size.

    A decoded pixel covers exactly ``8 / eighths`` original ones, also in an image whose size is
    not a multiple of that: its last pixel is then only partly covered. The edges, not the sides,
    are rounded (halves up), and a side never falls below ``floor(side * eighths / 8)``.
    """
    top, left = (box.top * eighths + 4) // 8, (box.left * eighths + 4) // 8
    bottom = ((box.top + box.height) * eighths + 4) // 8
    right = ((box.left + box.width) * eighths + 4) // 8
    return Box(top, left, bottom - top, right - left)


def resize(
    pixels: UInt8[np.ndarray, "in_height in_width 3"],
    height: int,
    width: int,
    interpolation: Interpolation,
) -> UInt8[np.ndarray, "3 height width"]:
    """Resize with antialiasing, as Pillow does, to within one level.

    Args:
        pixels: uint8 RGB, any strides.
        height: Output height in pixels.
        width: Output width in pixels.
        interpolation: The filter.
    """
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    # The vectorised kernel takes interleaved channels, and torch wants memory it may write to.
    owned = pixels if pixels.flags.writeable else pixels.copy()
    image = torch.from_numpy(owned).permute(2, 0, 1)[None]
    resized = functional.interpolate(image, (height, width), mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized[0].numpy())


def _cut(pixels: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return height and width of a JPEG that TurboJPEG can turn into RGB, else None."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return None if colours in ("CMYK", "YCCK") else (int(height), int(width))


def _decode_jpeg(
    data: bytes, height: int, width: int, eighths: int
) -> npt.NDArray[np.uint8] | None:
    """Decode at ``eighths / 8`` of the size; None where TurboJPEG finds fault with the data."""
    expected = -(-height * eighths // 8), -(-width * eighths // 8)
    least = expected if eighths < 8 else (0, 0)
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, min_height=least[0], min_width=least[1]
        )
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == expected else None


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that Pillow at hand can open."""
    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Return the lower-case suffixes, with their dot, of the files that count as images."""
    formats = set(readable_formats())
    return frozenset(s for s, name in Image.registered_extensions().items() if name in formats)


def remedy(name: str) -> str:
    """Return what a file, to be read, is in need of by its suffix, as it follows "which"; or ""."""
    is_heif = os.path.splitext(name)[1].lower() in _HEIF_SUFFIXES
    missing = is_heif and "HEIF" not in readable_formats()
    return "needs pip install 'quadriga[heic]'" if missing else ""


def _open_with_pillow(data: bytes, name: str) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns about odd metadata, once per place in its code and not per image.
        warnings.simplefilter("ignore")
        try:
            return Image.open(io.BytesIO(data), formats=readable_formats())
        except MemoryError:
            raise
        except Exception as error:
            raise _unreadable(name, error) from error


def _pixels_with_pillow(image: Image.Image, record: ImageRecord) -> npt.NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.array(_rgb(image, record))
        except (MemoryError, UnreadableSample):
            raise
        except Exception as error:
            raise _unreadable(record.name, error) from error


def _rgb(image: Image.Image, record: ImageRecord) -> Image.Image:
    """Convert any mode to 8-bit RGB; transparency is dropped."""
    bits = _bits_of_mode(image)
    if bits == 0:
        image = Image.fromarray(_scaled(image, record))
    elif image.mode == "P":
        image = image.convert("RGBA")
    image = image if image.mode == "RGB" else image.convert("RGB")
    if bits == 16:
        _check_upper_bytes(np.asarray(image), record)
    return image


def _bits_of_mode(image: Image.Image) -> int:
    """Return 8 for an image that Pillow gives as it is, 16 where it gives the upper bytes only.

    Returns:
        0 for what has one channel of 16-bit, 32-bit or floating-point numbers, to be scaled.
    """
    if image.mode[0] in "IF":
        return 0
    # Pillow has no mode for several channels of 16 bits: its decoder drops the lower ones.
    has_sixteen = image.format in ("PNG", "TIFF") and any(";16" in str(t[3]) for t in _tiles(image))
    return 16 if has_sixteen else 8


def _tiles(image: Image.Image) -> list[tuple[Any, ...]]:
    """Return how the decoder is to read an image that it has not read yet: its name, its mode."""
    tiles: list[tuple[Any, ...]] = getattr(image, "tile", [])
    return tiles


def _scaled(image: Image.Image, record: ImageRecord) -> npt.NDArray[np.uint8]:
    """Return an image of one deep channel in 8 bits."""
    # A PNM with another maximum than 65535 is stretched to that by its decoder.
    is_stretched = image.format == "PPM" and any(t[0] == "ppm" for t in _tiles(image))
    is_short = image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM"))
    values: npt.NDArray[Any] = np.asarray(image)
    low, high = 0.0, 65535.0
    if not is_stretched:
        if not np.isfinite(values).all():
            raise UnreadableSample(f"{record.name}: it holds values that are not finite")
        if record.decoding.value_range is not None:
            low, high = record.decoding.value_range
        elif not is_short or values.max() < _FULL_SIXTEEN:
            raise _unknown_range(record.name, float(values.min()), float(values.max()))
    levels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):
        shares = (values[top : top + _ROWS].astype(np.float64) - low) / (high - low)
        levels[top : top + _ROWS] = (255 * shares.clip(0, 1)).round()
    return levels


def _check_upper_bytes(pixels: npt.NDArray[np.uint8], record: ImageRecord) -> None:
    """Check that the upper bytes of 16-bit channels are the image in 8 bits."""
    if record.decoding.value_range == (0, 65535):
        return
    most = 256 * int(pixels.max()) + 255
    if record.decoding.value_range is not None:
        raise UnreadableSample(
            f"{record.name}: colours of 16 bits are read with data.value_range=[0,65535] only; "
            "convert the image to 8 bits per channel"
        )
    if most < _FULL_SIXTEEN:
        raise _unknown_range(record.name, 0, most)


_ROWS = 256
"""Rows of a deep image that are scaled at once, which bounds the memory."""

_FULL_SIXTEEN = 2**14
"""A greater value than 14 bits can hold: the image uses all 16."""

_USUAL_WHITE = (1, 255, 1023, 4095, 16383, 65535)


class UnknownRange(UnreadableSample):
    """An image's values cannot be scaled, since nothing says which of them is white."""


def _unknown_range(name: str, least: float, most: float) -> UnknownRange:
    white = next((value for value in _USUAL_WHITE if value >= most), None)
    example = f"[{min(0, least):g},{most if white is None else white:g}]"
    return UnknownRange(
        f"{name}: its values, {least:g} to {most:g}, have no known range; say which are black and "
        f"white with data.value_range, such as data.value_range={example}"
    )


def _unreadable(name: str, error: Exception) -> UnreadableSample:
    # Pillow's plug-ins raise whatever the damaged bytes lead to: OSError, SyntaxError,
    # struct.error, DecompressionBombError and more.
    reason = str(error).replace("\n", " ") or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = remedy(name) or "not an image of a known format"
    return UnreadableSample(f"{name}: {reason}")
