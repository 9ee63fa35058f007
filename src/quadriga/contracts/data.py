"""Interfaces of datasets and transforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from quadriga.contracts.objective import Batch

Split = Literal["train", "test"]

Sample = dict[str, "npt.NDArray[Any]"]
"""Name -> array of one sample, as a transform returns it; `stack` makes a `Batch` of several."""


@dataclass(frozen=True)
class TaskBlocks:
    """How a mixture divides a step into task blocks; each is one micro-batch of one task."""

    number: int
    """Task blocks per step, over all ranks."""
    sizes: Mapping[str, int]
    """Task -> samples per block, sorted by name."""
    shares: Mapping[str, float]
    """Task -> probability that a block belongs to it, sorted by name; they add up to 1."""

    @property
    def samples(self) -> int:
        """Mean number of samples per step, rounded."""
        return round(self.number * sum(self.shares[t] * size for t, size in self.sizes.items()))


class UnreadableSample(Exception):
    """A sample's data is damaged; the message names the sample and the cause."""


class Dataset(ABC):
    """Records by index, read from disk or generated."""

    classes: tuple[str, ...] = ()
    """Class names in the order of the labels; empty without labels."""
    identity: str = ""
    """What decides the samples beside the config and their number, such as a vocabulary's digest:
    a run is resumed only where it is the same."""
    description: str = ""
    """One line that says what was found on disk, and what was passed over and why; empty for what
    is made or has a fixed form."""
    vocabulary_size: int | None = None
    """Number of distinct tokens of text data; None for other data."""
    tasks: tuple[str, ...] = ()
    """Sorted names of the tasks of a mixture; empty for other data."""

    def of_task(self, task: str) -> Dataset:
        """Return the data set of one of `tasks`; a data set without tasks returns itself."""
        return self

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of records."""

    def check(self) -> None:
        """Look at a few records; called before a run, also by its rehearsal.

        Raises:
            UserError: They show that the records cannot be read as the config says.
        """
        return None

    @abstractmethod
    def read(self, index: int) -> Any:
        """Return record `index` undecoded.

        Raises:
            UnreadableSample: The record cannot be read.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Return a readable name of record `index`, such as a path or an archive member."""

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Return the class of each record without decoding any.

        Returns:
            int64 (records,), positions in `classes`; -1 for a record without a class. None where
            the records have no classes, or the classes are unknown before the records are read.
        """
        return None


class Transform(ABC):
    """Makes a sample of a record in a worker process, and transforms batches on the device."""

    def of_task(self, task: str) -> Transform:
        """Return the transform of one task of a mixture; other transforms return themselves."""
        return self

    @abstractmethod
    def sample(self, record: Any, key: int) -> Sample:
        """Decode and crop one record on the CPU.

        Args:
            record: The value that `Dataset.read` returned.
            key: The sample's random key, the only source of its randomness.

        Raises:
            UnreadableSample: The record cannot be decoded.
        """

    @abstractmethod
    def batch(self, batch: Batch) -> Batch:
        """Apply the batched operations (normalise, flip) on the batch's device."""

    @abstractmethod
    def example(self, size: int, device: torch.device) -> Batch:
        """Return what `batch` would return for `size` samples, with arbitrary values."""


def stack(
    samples: Sequence[Sample], index: npt.NDArray[np.int64], key: npt.NDArray[np.int64]
) -> Batch:
    """Stack samples into a batch and add their indices and keys.

    Args:
        samples: Samples with the same names and shapes.
        index: int64 (batch,).
        key: int64 (batch,).
    """
    names = samples[0].keys() if samples else ()
    batch = {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in names}
    return {**batch, "index": torch.from_numpy(index), "key": torch.from_numpy(key)}
