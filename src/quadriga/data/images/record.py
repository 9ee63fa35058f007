"""What a dataset of images hands to a transform."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image of a dataset."""

    data: bytes | npt.NDArray[np.uint8]
    """The bytes of an encoded file, or a decoded uint8 array (height, width, 3) in RGB."""
    label: int | None
    """Position of the class in `Dataset.classes`, or None without one."""
    name: str
    """What a person would call the image: a path, a member of an archive."""
