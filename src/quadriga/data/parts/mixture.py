"""A mixture of tasks, each with its own data, views and batch size.

A step consists of task blocks. Each block is one micro-batch of one task, which is drawn at random
(`quadriga.data.reading.stream`).
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Mapping
from typing import Any, NoReturn, final

import torch
from pydantic import Field, model_validator

from quadriga.config.base import Config
from quadriga.contracts import (
    Batch,
    Dataset,
    DatasetConfig,
    Sample,
    Split,
    TaskBlocks,
    Transform,
    ViewsConfig,
)
from quadriga.errors import keys_at

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class TaskData(Config):
    """The samples of one task."""

    data: DatasetConfig
    """The task's data set."""
    batch_size: int = Field(ge=1, le=2**30)
    """Samples of one block, which is one micro-batch of one rank."""
    weight: float = Field(1.0, gt=0, le=1e6)
    """Relative frequency: divided by the sum of all weights, the probability that a block is of
    this task."""


@final
class MixtureConfig(DatasetConfig):
    """The data of several tasks; ``views`` and ``objective`` must be mixtures of the same names."""

    tasks: dict[str, TaskData] = Field(min_length=1)
    """Name -> the samples of the task."""
    blocks: int = Field(ge=1, le=2**30)
    """Task blocks of a step over all ranks: a multiple of the number of ranks."""

    @model_validator(mode="after")
    def _check_names(self) -> MixtureConfig:
        for name in self.tasks:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    "tasks must have names of small letters, digits and _, with a letter first, "
                    f"but one is {name!r}"
                )
        return self

    def build(self, split: Split) -> MixtureDataset:
        """Open one split of every task.

        Raises:
            UserError: The split of a task is missing or empty.
        """
        opened = {}
        for name, task in sorted(self.tasks.items()):
            with keys_at({"data": f"data.tasks.{name}.data"}):
                opened[name] = task.data.build(split)
        return MixtureDataset(opened)

    def by_task(self) -> dict[str, DatasetConfig]:
        """Return the data of each task."""
        return {name: task.data for name, task in sorted(self.tasks.items())}

    def task_blocks(self) -> TaskBlocks:
        """Return the number of blocks of a step, and each task's batch size and probability."""
        tasks, whole = sorted(self.tasks.items()), sum(t.weight for t in self.tasks.values())
        return TaskBlocks(
            self.blocks,
            {name: task.batch_size for name, task in tasks},
            {name: task.weight / whole for name, task in tasks},
        )


@final
class MixtureDataset(Dataset):
    """The data sets of the tasks, concatenated in the order of their names."""

    def __init__(self, parts: Mapping[str, Dataset]) -> None:
        """Concatenate data sets: task name -> data set, in the order of the mapping."""
        self._parts, self.tasks = parts, tuple(parts)
        self._ends = list(itertools.accumulate(len(part) for part in parts.values()))
        self.identity = "; ".join(f"{n}: {len(p)} {p.identity}" for n, p in parts.items())
        described = [f"{n}: {p.description}" for n, p in parts.items() if p.description]
        self.description = "; ".join(described)

    def __len__(self) -> int:
        """Return the number of records of all tasks: an epoch of the mixture."""
        return self._ends[-1]

    def of_task(self, task: str) -> Dataset:
        """Return the data set of a task."""
        return self._parts[task]

    def read(self, index: int) -> Any:
        """Return record `index` of the concatenation; see `Dataset.read`."""
        part, within = self._find(index)
        return part.read(within)

    def name(self, index: int) -> str:
        """Return the name of record `index` in its task's data set."""
        part, within = self._find(index)
        return part.name(within)

    def _find(self, index: int) -> tuple[Dataset, int]:
        number = bisect.bisect_right(self._ends, index)
        part = self._parts[self.tasks[number]]
        return part, index - self._ends[number] + len(part)


@final
class MixtureViewsConfig(ViewsConfig):
    """The views of several tasks."""

    tasks: dict[str, ViewsConfig] = Field(min_length=1)
    """Name -> the views of the task."""

    def build(self, split: Split) -> MixtureTransform:
        """Make the transform of every task."""
        return MixtureTransform({name: views.build(split) for name, views in self.tasks.items()})

    def by_task(self) -> dict[str, ViewsConfig]:
        """Return the views of each task."""
        return dict(self.tasks)


@final
class MixtureTransform(Transform):
    """The transforms of the tasks; each sample needs that of its task (`of_task`)."""

    def __init__(self, parts: Mapping[str, Transform]) -> None:
        """Keep the transforms: task name -> transform."""
        self._parts = parts

    def of_task(self, task: str) -> Transform:
        """Return the transform of a task."""
        return self._parts[task]

    def sample(self, record: Any, key: int) -> Sample:
        """Raise TypeError: the task of the record is unknown."""
        self._refuse()

    def batch(self, batch: Batch) -> Batch:
        """Raise TypeError, as `sample` does."""
        self._refuse()

    def example(self, size: int, device: torch.device) -> Batch:
        """Raise TypeError, as `sample` does."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError("a mixture has no samples but those of its tasks: ask of_task(name)")
