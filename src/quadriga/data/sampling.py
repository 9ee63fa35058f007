"""Which samples a step takes and who reads them: pure functions, nothing to save or restore.

All samples a run ever takes form one stream: a keyed permutation of the dataset for epoch 0, then
one for epoch 1, and so on without a gap. Step ``t`` takes the next ``batch_size`` of it, whichever
ranks, workers and micro-batches share the work.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from quadriga.distributed.collectives import slice_of
from quadriga.errors import UserError
from quadriga.randomness import fold, fold_numpy, shuffled


def step_samples(
    seed: int, dataset_size: int, batch_size: int, step: int
) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
    """Return the samples of one optimizer step over all ranks.

    Args:
        seed: The run's seed.
        dataset_size: Samples of one epoch.
        batch_size: Samples of one step.
        step: The step, from 0.

    Returns:
        The samples' indices, and their random keys ``fold(seed, "sample", epoch, index)`` with
        the 64 bits read as signed.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, offsets = positions // dataset_size, positions % dataset_size
    index, key = np.empty_like(positions), np.empty_like(positions)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        part = slice(*np.searchsorted(epochs, [epoch, epoch + 1]))
        index[part] = shuffled(offsets[part], dataset_size, fold(seed, "order", epoch))
        key[part] = fold_numpy(fold(seed, "sample", epoch), index[part])
    return index, key


def micro_batches(batch_size: int, rank: int, world_size: int, accumulate: int) -> list[range]:
    """Return the positions in the global batch of each micro-batch of one rank.

    A rank takes a contiguous share of the batch and cuts it into contiguous parts; shares, and
    parts, differ by at most one sample.

    Args:
        batch_size: Samples of one step over all ranks.
        rank: This rank, from 0.
        world_size: Number of ranks.
        accumulate: Micro-batches per rank and step.

    Raises:
        UserError: There are fewer samples than micro-batches.
    """
    if batch_size < world_size * accumulate:
        raise UserError(
            f"the batch must have a sample for every micro-batch ({world_size} ranks x "
            f"{accumulate} accumulated), but has {batch_size}; raise the batch size or lower "
            f"the accumulation"
        )
    share = slice_of(batch_size, rank, world_size)
    return [share[part.start : part.stop] for part in _parts(len(share), accumulate)]


def _parts(total: int, count: int) -> list[range]:
    return [slice_of(total, part, count) for part in range(count)]
