"""The samples of each step and their division among ranks: pure functions without state.

The samples of a run form one stream: a keyed permutation of the dataset for epoch 0, then one for
epoch 1, and so on without a gap. Each step takes the next ``batch_size`` samples of the stream,
whatever the number of ranks, workers and micro-batches. With repeated augmentation it takes the
next ``ceil(batch_size / repeats)`` samples and shows each up to ``repeats`` times (Hoffer et al.,
"Augment your batch", CVPR 2020; arXiv:1901.09335).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from quadriga.distributed.collectives import slice_of
from quadriga.errors import UserError
from quadriga.randomness import fold, fold_numpy, shuffled


def step_samples(
    seed: int, dataset_size: int, batch_size: int, step: int, repeats: int = 1
) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
    """Return the samples of one optimizer step over all ranks.

    Args:
        seed: The run's seed.
        dataset_size: Samples of one epoch.
        batch_size: Samples of one step.
        step: The step, from 0.
        repeats: How often each sample is shown within the step. A step has
            ``ceil(batch_size / repeats)`` distinct samples, and their sequence is repeated until
            the batch is full; epochs count distinct samples.

    Returns:
        The samples' int64 indices, and their int64 random keys
        ``fold(seed, "sample", epoch, index)`` with the 64 bits read as signed; a sample's repeat r
        after the first has the key ``fold(seed, "sample", epoch, "repeat", r, index)``.
    """
    different = -(-batch_size // repeats)
    index, epochs = _stream(seed, dataset_size, different * step, different)
    slots = np.arange(batch_size, dtype=np.int64)
    repeat, place = slots // different, slots % different
    first, last = int(epochs[0]), int(epochs[-1])
    index, epochs = index[place], epochs[place]
    key = np.empty_like(index)
    for epoch in range(first, last + 1):
        for number in range(int(repeat[-1]) + 1):
            parts = ("sample", epoch) if number == 0 else ("sample", epoch, "repeat", number)
            part = (epochs == epoch) & (repeat == number)
            key[part] = fold_numpy(fold(seed, *parts), index[part])
    return index, key


def stream_samples(
    seed: int, dataset_size: int, start: int, count: int
) -> tuple[Int64[np.ndarray, " count"], Int64[np.ndarray, " count"]]:
    """Return int64 indices and keys of `count` samples of the stream from position `start` on."""
    index, epochs = _stream(seed, dataset_size, start, count)
    key = np.empty_like(index)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        part = epochs == epoch
        key[part] = fold_numpy(fold(seed, "sample", epoch), index[part])
    return index, key


def _stream(
    seed: int, dataset_size: int, start: int, count: int
) -> tuple[Int64[np.ndarray, " count"], Int64[np.ndarray, " count"]]:
    """Return int64 indices and epochs of `count` samples of the stream from `start` on."""
    positions = np.arange(start, start + count, dtype=np.int64)
    epochs, offsets = positions // dataset_size, positions % dataset_size
    index = np.empty_like(positions)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        part = slice(*np.searchsorted(epochs, [epoch, epoch + 1]))
        index[part] = shuffled(offsets[part], dataset_size, fold(seed, "order", epoch))
    return index, epochs


def deal(batch_size: int, world_size: int, accumulate: int) -> list[list[range]]:
    """Return, for each rank, the slots (positions in the batch) of each of its micro-batches.

    The first micro-batches of all ranks take the first slots in the order of the ranks, the second
    micro-batches the next slots, and so on. Micro-batches that neighbouring ranks compute at the
    same time are thus adjacent in the batch. The sizes of micro-batches with the same number, and
    their sums over the ranks, differ by at most one sample.

    Args:
        batch_size: Samples of one step over all ranks.
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
    passes = [slice_of(batch_size, number, accumulate) for number in range(accumulate)]
    dealt = []
    for rank in range(world_size):
        shares = [slice_of(len(slots), rank, world_size) for slots in passes]
        dealt.append([s[part.start : part.stop] for s, part in zip(passes, shares, strict=True)])
    return dealt
