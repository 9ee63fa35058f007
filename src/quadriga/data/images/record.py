"""What a dataset of images hands to a transform."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LARGEST_IMAGE = 178_956_970
"""Pixels of the largest image that Pillow opens; beyond, it takes the file for an attack."""


@dataclass(frozen=True)
class Decoding:
    """How encoded images become 8-bit pixels; the fields of `EncodedImagesConfig`."""

    value_range: tuple[float, float] | None = None
    """Values that become black and white in images of more than 8 bits per channel."""
    reduced: bool = False
    """Whether a JPEG may be decoded at a fraction of its size where a crop is made smaller."""
    max_pixels: int = LARGEST_IMAGE
    """Larger images are unreadable."""


PLAIN = Decoding()
"""Decoding where nothing is set."""


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image of a dataset."""

    data: bytes | npt.NDArray[np.uint8]
    """The bytes of an encoded file, or a decoded uint8 array (height, width, 3) in RGB."""
    label: int | None
    """Position of the class in `Dataset.classes`, or None without one."""
    name: str
    """What a person would call the image: a path, a member of an archive."""
    decoding: Decoding = PLAIN
    """How `data` is decoded."""
