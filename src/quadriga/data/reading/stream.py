"""The micro-batches of every step: of one data set, or the task blocks of a mixture.

They are pure functions of the seed and the step. A step of a mixture is a fixed number of task
blocks, whatever the number of ranks. Draw ``b`` of a key gives the task of block ``b`` (counted
over the whole run). Each task goes through its own data set as a separate run would: the number of
its blocks before ``b`` gives the position in its stream. Hence a step's samples do not depend on
the number of ranks, and a resumed run only counts blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from jaxtyping import Int64

from quadriga.contracts import TaskBlocks
from quadriga.data.reading.sampling import deal, step_samples, stream_samples
from quadriga.randomness import bits_numpy, fold

CHUNK = 1 << 12
"""Number of blocks between two cached counts."""


@final
@dataclass(frozen=True, eq=False)
class Part:
    """The samples of one micro-batch."""

    places: range
    """Positions of the samples in the step, over all ranks."""
    index: Int64[np.ndarray, " samples"]
    """Indices of the samples in the data set of their task."""
    key: Int64[np.ndarray, " samples"]
    task: str = ""
    """Name of the task; empty outside a mixture."""
    share: float = 1.0
    """Fraction of the step's micro-batches that belong to this task."""
    others: tuple[str, ...] = ()
    """The other tasks that other ranks compute at the same time."""


class SampleStream(ABC):
    """The micro-batches of each rank in each step."""

    world_size: int

    @abstractmethod
    def own(self, step: int, rank: int) -> list[Part]:
        """Return the micro-batches of one rank, in order."""

    def parts(self, step: int) -> list[Part]:
        """Return the micro-batches of all ranks: the first of each rank, then the second, ..."""
        ranks = [self.own(step, rank) for rank in range(self.world_size)]
        return [part for at_once in zip(*ranks, strict=True) for part in at_once]


@final
class PlainStream(SampleStream):
    """One data set: a micro-batch may start and end at any sample of a step."""

    def __init__(
        self,
        seed: int,
        dataset_size: int,
        batch_size: int,
        world_size: int,
        accumulate: int,
        repeats: int = 1,
    ) -> None:
        """Divide the batch among the ranks; for the arguments see `step_samples` and `deal`.

        Raises:
            UserError: There are fewer samples than micro-batches.
        """
        self.world_size = world_size
        self._arguments = (seed, dataset_size, batch_size, repeats)
        self._dealt = deal(batch_size, world_size, accumulate)

    def own(self, step: int, rank: int) -> list[Part]:
        """Return the rank's samples of the step, one part per micro-batch."""
        seed, size, batch_size, repeats = self._arguments
        index, key = step_samples(seed, size, batch_size, step, repeats)
        cuts = [(slots, slice(slots.start, slots.stop)) for slots in self._dealt[rank]]
        return [Part(slots, index[cut], key[cut]) for slots, cut in cuts]


@final
class BlockDraws:
    """The task of each block of a run, and the number of earlier blocks of each task."""

    def __init__(self, seed: int, blocks: TaskBlocks) -> None:
        """Use the key ``fold(seed, "task blocks")``; draw b belongs to block b."""
        self.blocks, self.tasks = blocks, tuple(blocks.shares)
        self._key = fold(seed, "task blocks")
        self._bounds = np.cumsum(list(blocks.shares.values()))[:-1]
        self._counted = [np.zeros(len(self.tasks), np.int64)]

    def draw(self, first: int, count: int) -> Int64[np.ndarray, " count"]:
        """Return int64 (count,): position in `tasks` of the task of each block from `first` on."""
        uniform = (bits_numpy(self._key, count, first) >> np.uint64(11)) * 2.0**-53
        return np.searchsorted(self._bounds, uniform, side="right").astype(np.int64)

    def before(self, block: int) -> Int64[np.ndarray, " tasks"]:
        """Return int64 (tasks,): the number of blocks of each task before `block`."""
        chunk, rest = divmod(block, CHUNK)
        while len(self._counted) <= chunk:
            first = CHUNK * (len(self._counted) - 1)
            self._counted.append(self._counted[-1] + self._count(first, CHUNK))
        counted: npt.NDArray[np.int64] = self._counted[chunk] + self._count(CHUNK * chunk, rest)
        return counted

    def samples_before(self, step: int) -> int:
        """Return the number of samples of the steps before `step`."""
        sizes = np.array(list(self.blocks.sizes.values()), np.int64)
        return int(self.before(step * self.blocks.number) @ sizes)

    def _count(self, first: int, count: int) -> Int64[np.ndarray, " tasks"]:
        return np.bincount(self.draw(first, count), minlength=len(self.tasks)).astype(np.int64)


@final
class TaskStream(SampleStream):
    """A mixture: block b of a step goes to rank b modulo the number of ranks."""

    def __init__(
        self, seed: int, dataset_sizes: Mapping[str, int], draws: BlockDraws, world_size: int
    ) -> None:
        """Divide the blocks of `draws` among the ranks.

        Args:
            seed: The run's seed; each task's stream has its own key, so that two tasks on equal
                data use different orders and different views.
            dataset_sizes: Task -> samples of one epoch of the task.
            draws: The tasks of the blocks.
            world_size: Number of ranks; divides the number of blocks of a step.
        """
        self.world_size, self._draws, self._dataset_sizes = world_size, draws, dataset_sizes
        self._seeds = {task: fold(seed, "task", task) for task in draws.tasks}

    def own(self, step: int, rank: int) -> list[Part]:
        """Return the blocks ``rank``, ``rank + ranks``, ... of the step."""
        draws, blocks = self._draws, self._draws.blocks
        first = step * blocks.number
        drawn = [draws.tasks[number] for number in draws.draw(first, blocks.number)]
        done = dict(zip(draws.tasks, draws.before(first).tolist(), strict=True))
        parts, place = [], 0
        for number, task in enumerate(drawn):
            size = blocks.sizes[task]
            if number % self.world_size == rank:
                start = number - rank
                at_once = set(drawn[start : start + self.world_size])
                index, key = stream_samples(
                    self._seeds[task], self._dataset_sizes[task], done[task] * size, size
                )
                share = drawn.count(task) / blocks.number
                others = tuple(sorted(at_once - {task}))
                parts.append(Part(range(place, place + size), index, key, task, share, others))
            done[task] += 1
            place += size
        return parts
