"""Masks over an image's patches, drawn from the samples' keys on their device.

A mask is a function of the sample's key alone, so it is the same in any batch. Nothing waits for
the device: the number of draws is fixed.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from quadriga import randomness

SMALLEST_BLOCK = 4
"""Smallest area in patches of the blocks that `block_masks` draws."""
ASPECTS = (0.3, 1 / 0.3)
"""Smallest and largest height / width of a block."""
TRIES = 10
"""A mask is complete when so many blocks in a row did not fit."""
ALL_TRIES = 48
"""Blocks that are drawn for a mask at most."""

_COUNT = randomness.fold("mask count")
_RANDOM = randomness.fold("random mask")
_BLOCKS = randomness.fold("block mask")


def mask_counts(
    keys: Int[Tensor, " batch"], patches: int, probability: float, ratio: tuple[float, float]
) -> Int[Tensor, " batch"]:
    """Draw how many patches of each image are masked.

    Args:
        keys: int64 key of each sample.
        patches: Patches of an image.
        probability: Probability that an image is masked at all.
        ratio: Between these shares the masked share of such an image is uniform.

    Returns:
        int64, rounded down.
    """
    chosen, share = randomness.uniform_rows(keys, _COUNT, 2).unbind(1)
    count = ((ratio[0] + (ratio[1] - ratio[0]) * share) * patches).floor().long()
    return torch.where(chosen < probability, count, 0)


def random_masks(
    keys: Int[Tensor, " batch"], grid: tuple[int, int], counts: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch patches"]:
    """Mask exactly `counts` patches of each image, every choice equally likely (He et al., "MAE").

    Args:
        keys: int64 key of each sample.
        grid: Rows and columns of patches.
        counts: Number of patches to mask in each image.

    Returns:
        True where a patch is masked; patches in row-major order.
    """
    draws = randomness.uniform_rows(keys, _RANDOM, grid[0] * grid[1])
    # Stable, so that with equal draws the mask does not depend on the device's sorting.
    rank = draws.argsort(dim=1, stable=True).argsort(dim=1)
    return rank < counts[:, None]


def block_masks(
    keys: Int[Tensor, " batch"], grid: tuple[int, int], counts: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch patches"]:
    """Mask blocks of patches, at most `counts` of each image (Bao et al., "BEiT", algorithm 1).

    Blocks are added while they fit (arXiv:2106.08254). The area of each is uniform from 4 patches
    to what is left of the count, the logarithm of its aspect ratio is uniform from 0.3 to 1 / 0.3,
    and its place is uniform. As in the implementations of BEiT, iBOT and DINOv2, a block is smaller
    than the grid in both directions, is added only if it masks a new patch and no more than are
    left, and the mask is complete after 10 blocks in a row that were not added; so an image may
    have a few masked patches less than its count. Here it is also complete after 48 blocks in all.

    Args:
        keys: int64 key of each sample.
        grid: Rows and columns of patches.
        counts: Largest number of masked patches of each image.

    Returns:
        True where a patch is masked; patches in row-major order.
    """
    rows, columns = grid
    draws = randomness.uniform_rows(keys, _BLOCKS, 4 * ALL_TRIES).view(len(keys), ALL_TRIES, 4)
    low, high = (math.log(aspect) for aspect in ASPECTS)
    aspects = (low + (high - low) * draws[:, :, 1]).exp()
    row = torch.arange(rows, device=keys.device)
    column = torch.arange(columns, device=keys.device)
    masks = keys.new_zeros((len(keys), rows, columns), dtype=torch.bool)
    left, failures = counts, torch.zeros_like(counts)
    for block in range(ALL_TRIES):
        area = SMALLEST_BLOCK + (left - SMALLEST_BLOCK) * draws[:, block, 0]
        height = (area * aspects[:, block]).sqrt().round().long()
        width = (area / aspects[:, block]).sqrt().round().long()
        inside_rows = _interval(row, height, rows, draws[:, block, 2])
        inside_columns = _interval(column, width, columns, draws[:, block, 3])
        new = inside_rows[:, :, None] & inside_columns[:, None, :] & ~masks
        size = new.sum(dim=(1, 2))
        fits = (height < rows) & (width < columns) & (size > 0) & (size <= left)
        fits = fits & (failures < TRIES)
        masks = masks | (new & fits[:, None, None])
        left = left - size * fits
        # Once complete, a mask stays so, since nothing resets its failures.
        failures = torch.where(fits, 0, failures + 1)
    return masks.flatten(1)


def crop_masks(
    keys: Int[Tensor, " batch"],
    crop: int,
    grid: tuple[int, int],
    probability: float,
    ratio: tuple[float, float],
) -> Bool[Tensor, "batch patches"]:
    """Draw block-wise masks of one crop of each image; arguments as for `mask_counts`."""
    own = randomness.pass_keys(keys, f"mask {crop}")
    return block_masks(own, grid, mask_counts(own, grid[0] * grid[1], probability, ratio))


def masked_first(
    masks: Bool[Tensor, "batch patches"], most: int
) -> tuple[Int[Tensor, "batch {most}"], Float[Tensor, "batch {most}"]]:
    """Return the numbers of `most` patches of each image, the masked ones first, in order.

    A fixed number, so that shapes are known without waiting for the device.

    Args:
        masks: True where a patch is masked, at most `most` times in an image.
        most: Patches of each image to return.

    Returns:
        int64 numbers; and their float32 weights: of masked patches 1 / (masked patches of the
        image), of the others 0.
    """
    order = masks.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    share = masks / masks.sum(dim=1, keepdim=True).clamp(min=1)
    return order, share.gather(1, order)


def check_mask_ratio(ratio: tuple[float, float]) -> None:
    """Check a config's range of masked shares.

    Raises:
        ValueError: It is not two ascending shares.
    """
    low, high = ratio
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"mask_ratio must be two ascending shares in [0, 1], but is [{low},{high}]"
        )


def _interval(
    places: Int[Tensor, " cells"],
    length: Int[Tensor, " batch"],
    cells: int,
    draw: Float[Tensor, " batch"],
) -> Bool[Tensor, "batch cells"]:
    """Return which places lie in an interval of a length, at a uniform position where it fits."""
    first = (draw * (cells - length + 1)).floor()[:, None]
    return (places >= first) & (places < first + length[:, None])
