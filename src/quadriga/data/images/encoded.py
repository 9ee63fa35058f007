"""What all data sets of encoded images have in common: how they are decoded, and a first look."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from quadriga.config.base import Later
from quadriga.contracts import Dataset, DatasetConfig, UnreadableSample
from quadriga.data.images.decode import OpenedImage, UnknownRange
from quadriga.data.images.record import LARGEST_IMAGE, Decoding
from quadriga.errors import UserError

_LOOKED_AT = 32
"""Images of a data set that are looked at before a run."""
_WIDEST = 1e12
Level = Annotated[float, Field(ge=-_WIDEST, le=_WIDEST)]


class EncodedImagesConfig(DatasetConfig):
    """Images in files of any format that Pillow reads."""

    value_range: Later[tuple[Level, Level] | None] = None
    """Values that become black and white in images of more than 8 bits per channel, such as
    ``[0,4095]``; none: 0 and 65535 for 16 bits of which the upper two are used, and any other
    such image is refused."""
    # Runs saved without it were reduced wherever that was possible; they go on with every pixel.
    reduced_decoding: Later[bool] = False
    """Whether a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where a training crop still has as
    many pixels as the view: faster for images much larger than the views, which then differ from
    those of full decoding by some 5 of 255 levels on average (docs/log.md)."""
    max_image_pixels: Later[int] = Field(default=2**26, ge=1, le=LARGEST_IMAGE)
    """Images of more pixels are unreadable; decoding one takes some 10 bytes for each."""

    @model_validator(mode="after")
    def _check_value_range(self) -> EncodedImagesConfig:
        if self.value_range is not None:
            low, high = self.value_range
            if high - low < 1 / _WIDEST:
                raise ValueError(
                    "value_range must be two ascending values, such as [0,4095], but is "
                    f"[{low:g},{high:g}]"
                )
        return self

    def decoding(self) -> Decoding:
        """Return how the images are decoded."""
        return Decoding(self.value_range, self.reduced_decoding, self.max_image_pixels)


class EncodedImages(Dataset):
    """Encoded images by index."""

    decoding: Decoding

    def check(self) -> None:
        """Look at a few images, evenly spread: at the values only of those of more than 8 bits.

        Raises:
            UserError: None of them can be read, or one has values of no known range.
        """
        places = np.unique(np.linspace(0, len(self) - 1, _LOOKED_AT).astype(int))
        reasons = []
        for index in places.tolist():
            try:
                OpenedImage(self.read(index)).check_values()
            except UnknownRange as error:
                raise UserError(f"data.value_range must be set: {error}") from error
            except UnreadableSample as error:
                reasons.append(str(error))
        if len(reasons) == len(places):
            raise UserError(
                f"data must have images that can be read, but of {len(places)} looked at none "
                f"can; the first: {reasons[0]}; check data.root"
            )
