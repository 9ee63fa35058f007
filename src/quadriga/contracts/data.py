"""What a dataset and a transform are."""

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
"""Arrays of one sample, as a transform makes them; stacked they become a `Batch`."""


@dataclass(frozen=True)
class TaskBlocks:
    """How a step of a mixture is made up: of task blocks, each one micro-batch of one task."""

    number: int
    """Task blocks of a step, over all ranks."""
    sizes: Mapping[str, int]
    """Task -> samples of a block; in the order of the names."""
    shares: Mapping[str, float]
    """Task -> probability that a block is of it, in the same order; they add up to 1."""

    @property
    def samples(self) -> int:
        """Mean number of samples of a step, to the nearest whole number."""
        return round(self.number * sum(self.shares[t] * size for t, size in self.sizes.items()))


class UnreadableSample(Exception):
    """A sample's data is damaged; the message names the sample and says why."""


class Dataset(ABC):
    """Records by index, read from disk or made."""

    classes: tuple[str, ...] = ()
    """Class names in the order of the labels; empty without labels."""
    identity: str = ""
    """What decides the samples beside the config and their number, such as a vocabulary's digest:
    a run is resumed only where it is the same."""
    vocabulary_size: int | None = None
    """Number of different tokens of a text; None for what is no text."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks of a mixture, in order; empty outside one."""

    def of_task(self, task: str) -> Dataset:
        """Return the data set of one of `tasks`; outside a mixture this one."""
        return self

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of records."""

    @abstractmethod
    def read(self, index: int) -> Any:
        """Return record `index` undecoded.

        Raises:
            UnreadableSample: The record cannot be read.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what a person would call record `index`: a path, a member of an archive."""

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Return the class of each record, known without decoding any.

        Returns:
            int64 (records,), positions in `classes`; -1 for a record without one. None where the
            records have no classes, or they are not known before they are read.
        """
        return None


class Transform(ABC):
    """From a record to a sample in a worker process, and the batched rest on the device."""

    def of_task(self, task: str) -> Transform:
        """Return the transform of one task of a mixture; outside a mixture this one."""
        return self

    @abstractmethod
    def sample(self, record: Any, key: int) -> Sample:
        """Decode and crop one record on the CPU.

        Args:
            record: What `Dataset.read` returned.
            key: The sample's random key: all randomness of the sample comes from it.

        Raises:
            UnreadableSample: The record cannot be decoded.
        """

    @abstractmethod
    def batch(self, batch: Batch) -> Batch:
        """Do the batched part (normalise, flip) on the device the batch is on."""

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
