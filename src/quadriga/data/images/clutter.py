"""Shapes among clutter: small grey pictures of ten shapes, drawn once when the data is opened.

A data set that needs no download, is learned within minutes on one core and is out of reach of a
classifier without features. Sample `i` is a pure function of (seed of the data set, split, `i`):
a smaller data set is the beginning of a larger one.
"""

from __future__ import annotations

import functools
from typing import final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from quadriga.contracts import DatasetConfig, Split
from quadriga.data.clutter_drawing import SHAPES, draw
from quadriga.data.images.record import ImageRecord
from quadriga.data.labelled import LabelledDataset
from quadriga.randomness import fold, fold_numpy


@final
class ClutterConfig(DatasetConfig):
    """One of ten shapes, of any size, place and contrast, with strokes and noise about it."""

    image_px: int = Field(default=24, ge=16, le=256)
    """Side of the square pictures."""
    train_samples: int = Field(default=3000, ge=1, le=1_000_000)
    """Number of training pictures; the classes take turns."""
    test_samples: int = Field(default=2000, ge=1, le=1_000_000)
    """Number of test pictures."""
    noise: float = Field(default=0.2, ge=0)
    """Standard deviation of the Gaussian noise of a pixel; black is 0 and white 1."""
    strokes: int = Field(default=2, ge=0, le=100)
    """Number of straight strokes in a picture that have nothing to do with its class."""
    seed: int = 0
    """Seed of the data set, apart from the run's: the same pictures in every run."""

    def build(self, split: Split) -> ClutterDataset:
        """Draw one split."""
        return ClutterDataset(self, split)


@final
class ClutterDataset(LabelledDataset):
    """The pictures of one split, in memory."""

    def __init__(self, config: ClutterConfig, split: Split) -> None:
        """Draw them, or take those that this process has drawn already."""
        self.classes = SHAPES
        self._split = split
        self._pictures = _drawn(config, split)

    def __len__(self) -> int:
        """Return the number of pictures of the split."""
        return len(self._pictures)

    def read(self, index: int) -> ImageRecord:
        """Return picture `index` as uint8 (image_px, image_px, 3), grey, with its label.

        The array is a view: nothing is copied, and it may not be written to.
        """
        return ImageRecord(self._pictures[index], index % len(SHAPES), self.name(index))

    def name(self, index: int) -> str:
        """Return for example ``clutter train 17``."""
        return f"clutter {self._split} {index}"

    def labels(self) -> npt.NDArray[np.int64]:
        """Return the class of each picture."""
        return np.arange(len(self)) % len(SHAPES)


@functools.lru_cache(maxsize=4)
def _drawn(config: ClutterConfig, split: Split) -> npt.NDArray[np.uint8]:
    """Return all pictures: read-only uint8 (pictures, image_px, image_px, 3)."""
    count = config.train_samples if split == "train" else config.test_samples
    index = np.arange(count)
    keys = fold_numpy(fold(config.seed, "clutter", split), index)
    grey = draw(index % len(SHAPES), keys, config.image_px, config.noise, config.strokes)
    # The channels are outermost in memory, as the views hand them on: no sample is copied.
    planes = np.ascontiguousarray(np.broadcast_to(grey[:, None], (count, 3, *grey.shape[1:])))
    planes.flags.writeable = False
    return planes.transpose(0, 2, 3, 1)
