"""The micro-batches of every step: of one data set, or the task blocks of a mixture.

Pure functions of the seed and the step, as all of sampling is. A step of a mixture is a fixed
number of task blocks, whatever the ranks. The task of block ``b`` (counted over the whole run) is
drawn from a key of its own, and each task goes through its own data set as a run alone would: its
blocks before ``b`` say where in its stream the block begins. So a step's samples are the same on
any ranks, and a resumed run counts blocks instead of reading what was read.
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
"""Blocks between two counts that are kept."""


@final
@dataclass(frozen=True, eq=False)
class Part:
    """The samples of one micro-batch."""

    places: range
    """Their places in the step, over all ranks."""
    index: Int64[np.ndarray, " samples"]
    """Their indices in the data set of their task."""
    key: Int64[np.ndarray, " samples"]
    task: str = ""
    """Empty outside a mixture."""
    share: float = 1.0
    """Share of the step's micro-batches that are of this task."""
    others: tuple[str, ...] = ()
    """The other tasks that ranks compute at the same time."""


class SampleStream(ABC):
    """What each rank reads for each step."""

    world_size: int

    @abstractmethod
    def own(self, step: int, rank: int) -> list[Part]:
        """Return the micro-batches of one rank, in order."""

    def parts(self, step: int) -> list[Part]:
        """Return the micro-batches of all ranks: the first of each, rank after rank, and so on."""
        ranks = [self.own(step, rank) for rank in range(self.world_size)]
        return [part for at_once in zip(*ranks, strict=True) for part in at_once]


@final
class PlainStream(SampleStream):
    """One data set: a step's samples are cut between any two of them."""

    def __init__(
        self,
        seed: int,
        dataset_size: int,
        batch_size: int,
        world_size: int,
        accumulate: int,
        repeats: int = 1,
    ) -> None:
        """Take the arguments of `step_samples` and `deal`.

        Raises:
            UserError: There are fewer samples than micro-batches.
        """
        self.world_size = world_size
        self._arguments = (seed, dataset_size, batch_size, repeats)
        self._dealt = deal(batch_size, world_size, accumulate)

    def own(self, step: int, rank: int) -> list[Part]:
        """Return this rank's slots of the step, one part per micro-batch."""
        seed, size, batch_size, repeats = self._arguments
        index, key = step_samples(seed, size, batch_size, step, repeats)
        cuts = [(slots, slice(slots.start, slots.stop)) for slots in self._dealt[rank]]
        return [Part(slots, index[cut], key[cut]) for slots, cut in cuts]


@final
class BlockDraws:
    """Which task each block of a run is of, and how many of each came before."""

    def __init__(self, seed: int, blocks: TaskBlocks) -> None:
        """Draw from ``fold(seed, "task blocks")``; draw b belongs to block b."""
        self.blocks, self.tasks = blocks, tuple(blocks.shares)
        self._key = fold(seed, "task blocks")
        self._bounds = np.cumsum(list(blocks.shares.values()))[:-1]
        self._counted = [np.zeros(len(self.tasks), np.int64)]

    def draw(self, first: int, count: int) -> Int64[np.ndarray, " count"]:
        """Return the number in `tasks` of the task of each of `count` blocks."""
        uniform = (bits_numpy(self._key, count, first) >> np.uint64(11)) * 2.0**-53
        return np.searchsorted(self._bounds, uniform, side="right").astype(np.int64)

    def before(self, block: int) -> Int64[np.ndarray, " tasks"]:
        """Return how many of the blocks before `block` are of each task."""
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
    """A mixture: whole task blocks, dealt pass by pass."""

    def __init__(
        self, seed: int, dataset_sizes: Mapping[str, int], draws: BlockDraws, world_size: int
    ) -> None:
        """Deal the blocks of `draws` to the ranks, whose number divides that of a step.

        Args:
            seed: The run's seed; each task's stream has a key of its own, so that two tasks on
                equal data see it in another order and draw other views.
            dataset_sizes: Task -> samples of one epoch of it.
            draws: The tasks of the blocks.
            world_size: Number of ranks.
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
