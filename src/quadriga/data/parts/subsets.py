"""Parts of a data set: an equal fraction of every class, or a random subset of fixed size."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from quadriga.contracts import Dataset, DatasetConfig, Split
from quadriga.errors import UserError, keys_at
from quadriga.randomness import fold, shuffled


class Selection(Dataset):
    """Some of the samples of a data set."""

    def __init__(self, dataset: Dataset, indices: npt.NDArray[np.int64]) -> None:
        """Select the samples `indices`, int64 (samples,), in that order."""
        self.whole = dataset
        self.classes = dataset.classes
        self.identity = dataset.identity
        self.description = dataset.description
        self.vocabulary_size = dataset.vocabulary_size
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def check(self) -> None:
        """Look at a few records of the whole; see `Dataset.check`."""
        self.whole.check()

    def read(self, index: int) -> Any:
        """Return record `index` of the selection; see `Dataset.read`."""
        return self.whole.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Return the record's name in the whole data set."""
        return self.whole.name(int(self.indices[index]))

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Return the labels of the selected records; see `Dataset.labels`."""
        labels = self.whole.labels()
        return None if labels is None else labels[self.indices]


@final
class Subset(Selection):
    """The first `count` samples of a keyed permutation, in the order of the data set."""

    def __init__(self, dataset: Dataset, count: int, seed: int) -> None:
        """Choose `count` samples, or all if there are fewer; equal arguments give equal choices."""
        count = min(count, len(dataset))
        chosen = shuffled(np.arange(count), max(1, len(dataset)), fold(seed, "subset"))
        super().__init__(dataset, np.sort(chosen))


@final
class PartConfig(DatasetConfig):
    """A class-balanced part of another data set's training split; the test split is whole."""

    of: DatasetConfig
    """The whole data set."""
    fraction: float = Field(gt=0, le=1)
    """Fraction of each class that is kept, at least one record of each."""
    seed: int = Field(0, ge=-(2**63), le=2**63 - 1)
    """Seed of the choice, independent of the run's seed. A smaller part is a subset of a larger
    one."""

    def build(self, split: Split) -> Dataset:
        """Open one split; of the training split, choose the part.

        Raises:
            UserError: The whole data set is missing, empty or without labels.
        """
        with keys_at({"data": "data.of"}):
            whole = self.of.build(split)
        if split == "test":
            return whole
        labels = whole.labels()
        if labels is None or not whole.classes:
            raise UserError(
                f"data.of must be a data set with labels, for its classes to be balanced, "
                f"but data.of.kind={self.of.kind()} is without labels; take data.of alone"
            )
        return Selection(whole, balanced_part(labels, self.fraction, self.seed))


def balanced_part(
    labels: npt.NDArray[np.int64], fraction: float, seed: int
) -> npt.NDArray[np.int64]:
    """Choose the same fraction of each class.

    Args:
        labels: int64 (records,).
        fraction: The fraction, above 0 and at most 1; of a class of n records, ``fraction n``
            rounded are kept, and at least one.
        seed: Seed of the choice; the part of a smaller fraction is a subset of that of a larger.

    Returns:
        int64 positions in `labels`, ascending.
    """
    order = np.argsort(labels, kind="stable")
    names, counts = np.unique(labels, return_counts=True)
    chosen = []
    for name, members in zip(names, np.split(order, np.cumsum(counts))[:-1], strict=True):
        kept = max(1, round(fraction * len(members)))
        key = fold(seed, "part", int(name))
        chosen.append(members[shuffled(np.arange(kept), len(members), key)])
    return np.sort(np.concatenate(chosen)) if chosen else order
