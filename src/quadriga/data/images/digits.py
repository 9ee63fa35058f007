"""Real handwritten digits that ship with scikit-learn: the embedded data set of the demo.

1,797 digits of 8 x 8 pixels (the test set of the UCI "Optical Recognition of Handwritten Digits"
data, Alpaydin and Kaynak, 1998), enlarged once when the data set is opened.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from quadriga import randomness
from quadriga.contracts import Dataset, DatasetConfig, Split
from quadriga.data.images.record import ImageRecord

_LARGEST_VALUE = 16
_MARGIN = 1  # The originals touch their edges; one pixel of margin around them reads better.
_FOLDS = 5  # One of them is held out.


@final
class DigitsConfig(DatasetConfig):
    """The handwritten digits of scikit-learn; nothing is read from disk but the package itself."""

    image_px: int = Field(default=32, ge=8, le=256)
    """Side of the square images; the 8 x 8 originals get a margin of one and are enlarged."""

    def build(self, split: Split) -> DigitsDataset:
        """Load one split: 1,437 digits to train on, 360 held out, a fifth of each class."""
        return DigitsDataset(split, self.image_px)


@final
class DigitsDataset(Dataset):
    """The digits of one split, in memory."""

    def __init__(self, split: Split, image_px: int) -> None:
        """Load, split and enlarge.

        Args:
            split: Which part. The hold-out is the same in every run, whatever its seed.
            image_px: Side of the images in pixels.
        """
        pixels, labels = _load()
        self.classes = tuple(str(name) for name in np.unique(labels))
        self._originals = _split_positions(labels, split)
        images = pixels[self._originals] * (255 / _LARGEST_VALUE)
        self._images = _enlarge(np.rint(images).astype(np.uint8), image_px)
        self._labels = [int(label) for label in labels[self._originals]]

    def __len__(self) -> int:
        """Return the number of digits of the split."""
        return len(self._images)

    def read(self, index: int) -> ImageRecord:
        """Return digit `index` as uint8 (image_px, image_px, 3), grey, with its label."""
        pixels = np.repeat(self._images[index, :, :, None], 3, axis=2)
        return ImageRecord(pixels, self._labels[index], self.name(index))

    def name(self, index: int) -> str:
        """Return the digit's name, with its position in scikit-learn's order."""
        return f"digit {self._originals[index]}"

    def labels(self) -> npt.NDArray[np.int64]:
        """Return the class of each digit."""
        return np.array(self._labels, np.int64)


def _load() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return all digits: values of 0 to 16, (1797, 8, 8), and labels.

    The file is read where the package keeps it: to import the package takes two seconds, in every
    rank and every command. Where it keeps it elsewhere, it is asked.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in package.submodule_search_locations or () if package else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


def _split_positions(labels: npt.NDArray[np.int64], split: Split) -> npt.NDArray[np.int64]:
    """Return the positions of a split in the original order, ascending."""
    key = randomness.fold("digits", "hold-out")
    order = randomness.shuffled(np.arange(labels.size), labels.size, key)
    by_class = order[np.argsort(labels[order], kind="stable")]
    held_out = np.arange(labels.size) % _FOLDS == 0
    return np.sort(by_class[held_out if split == "test" else ~held_out])


def _enlarge(images: npt.NDArray[np.uint8], image_px: int) -> npt.NDArray[np.uint8]:
    """Resize uint8 (count, 8, 8) to (count, image_px, image_px), bicubically."""
    framed = np.pad(images, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)))
    size = (image_px, image_px)
    resized = [Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in framed]
    return np.stack([np.asarray(image) for image in resized])
