"""From an encoded image to uint8 pixels of one crop at one size.

Baseline: Pillow decodes everything. Fast path: JPEG through TurboJPEG, decoded at 1/2, 1/4 or 1/8
of its size by dropping DCT coefficients where the crop stays at least as large as the output.
The resize is torch's antialiased one on uint8, the same for both paths.

The orientation tag of EXIF is ignored: pixels are taken as they are stored, which is what the
published ImageNet recipes are trained and evaluated with.
"""

from __future__ import annotations

import io
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

MAX_PIXELS = 178_956_970
"""Larger images are refused as decompression bombs; Pillow's own hard limit."""

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
            UnreadableSample: It is no image, damaged, or larger than `MAX_PIXELS`.
        """
        self._record = record
        self._pillow: Image.Image | None = None
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
        if self.height * self.width > MAX_PIXELS:
            raise UnreadableSample(
                f"{record.name}: {self.width}x{self.height} pixels, the limit is {MAX_PIXELS}"
            )

    @property
    def whole(self) -> Box:
        """The whole image as a box."""
        return Box(0, 0, self.height, self.width)

    def crop(
        self, box: Box, height: int = 0, width: int = 0
    ) -> UInt8[np.ndarray, "crop_height crop_width 3"]:
        """Decode the pixels of `box`, possibly at 1/2, 1/4 or 1/8 of the size.

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
            eighths = reduction(box, height, width)
            pixels = _decode_jpeg(data, self.height, self.width, eighths)
            if pixels is not None:
                return _cut(pixels, reduced_box(box, eighths))
            # What TurboJPEG finds fault with is for Pillow to decide, so that one library decides
            # what is readable.
            self._pillow = _open_with_pillow(data, self._record.name)
        return _cut(_pixels_with_pillow(self._pillow, self._record.name), box)


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


def _open_with_pillow(data: bytes, name: str) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns about odd metadata, once per place in its code and not per image.
        warnings.simplefilter("ignore")
        try:
            return Image.open(io.BytesIO(data))
        except MemoryError:
            raise
        except Exception as error:
            raise _unreadable(name, error) from error


def _pixels_with_pillow(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.array(_rgb(image))
        except MemoryError:
            raise
        except Exception as error:
            raise _unreadable(name, error) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB; transparency is dropped, 16 bits keep the upper 8."""
    if image.mode.startswith("I"):
        levels: npt.NDArray[Any] = np.asarray(image)
        image = Image.fromarray((levels.clip(0, 0xFFFF) >> 8).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _unreadable(name: str, error: Exception) -> UnreadableSample:
    # Pillow's plug-ins raise whatever the damaged bytes lead to: OSError, SyntaxError,
    # struct.error, DecompressionBombError and more.
    reason = str(error).replace("\n", " ") or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image of a known format"
    return UnreadableSample(f"{name}: {reason}")
