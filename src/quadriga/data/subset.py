"""A fixed part of a data set, such as one for evaluations that need not see all of it."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt

from quadriga.contracts import Dataset
from quadriga.randomness import fold, shuffled


class Selection(Dataset):
    """Some of the samples of a data set."""

    def __init__(self, dataset: Dataset, indices: npt.NDArray[np.int64]) -> None:
        """Take the samples `indices`, int64, in that order."""
        self.whole = dataset
        self.classes = dataset.classes
        self.identity = dataset.identity
        self.vocabulary_size = dataset.vocabulary_size
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Any:
        """Return record `index` of the part; see `Dataset.read`."""
        return self.whole.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Return the name that the whole data set gives the record."""
        return self.whole.name(int(self.indices[index]))


@final
class Subset(Selection):
    """The first `count` samples of a keyed permutation, in the order of the data set."""

    def __init__(self, dataset: Dataset, count: int, seed: int) -> None:
        """Choose the samples; the same for equal arguments, all of them if there are no more."""
        count = min(count, len(dataset))
        chosen = shuffled(np.arange(count), max(1, len(dataset)), fold(seed, "subset"))
        super().__init__(dataset, np.sort(chosen))
