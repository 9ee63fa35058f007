"""A fixed part of a data set, for evaluations that need not see all of it."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from quadriga.contracts import Dataset
from quadriga.randomness import fold, shuffled


@final
class Subset(Dataset):
    """The first `count` samples of a keyed permutation, in the order of the data set."""

    def __init__(self, dataset: Dataset, count: int, seed: int) -> None:
        """Choose the samples; the same for equal arguments, all of them if there are no more."""
        self.whole = dataset
        self.classes = dataset.classes
        count = min(count, len(dataset))
        chosen = shuffled(np.arange(count), max(1, len(dataset)), fold(seed, "subset"))
        self.indices = np.sort(chosen)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Any:
        """Return record `index` of the part; see `Dataset.read`."""
        return self.whole.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Return the name that the whole data set gives the record."""
        return self.whole.name(int(self.indices[index]))
