"""Context and target blocks of an image's patches (Assran et al., "I-JEPA", arXiv:2301.08243).

The sizes of the blocks are those of a whole step, so that all images have tensors of one shape;
their places are drawn from the samples' keys on their device. Nothing waits for the device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from quadriga import randomness

TARGETS = 4
"""Target blocks of an image."""
TARGET_SCALE = (0.15, 0.2)
"""Smallest and largest fraction of the patches in a target block."""
TARGET_ASPECT = (0.75, 1.5)
"""Smallest and largest height / width of a target block."""
CONTEXT_SCALE = (0.85, 1.0)
"""Smallest and largest fraction of the patches in the square context block."""
LEAST_CONTEXT = 10 / 196
"""Fraction of the patches that the context keeps at least."""

_SIZES = randomness.fold("multi-block sizes")
_PLACES = randomness.fold("multi-block places")


class BlockSizes(NamedTuple):
    """Rows and columns of patches of the blocks of a step."""

    target: tuple[int, int]
    context: tuple[int, int]

    @classmethod
    def draw(cls, step: int, grid: tuple[int, int]) -> BlockSizes:
        """Draw the sizes for a step; `grid` has at least 2 rows and columns.

        A block is smaller than the grid in both directions, as in the reference implementation.
        """
        stream = randomness.Stream(randomness.fold(_SIZES, step))

        def size(scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
            area = int(grid[0] * grid[1] * stream.uniform(*scale))
            ratio = stream.uniform(*aspect)
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            return min(max(height, 1), grid[0] - 1), min(max(width, 1), grid[1] - 1)

        return cls(size(TARGET_SCALE, TARGET_ASPECT), size(CONTEXT_SCALE, (1.0, 1.0)))

    def most_context(self, grid: tuple[int, int]) -> int:
        """Return the largest number of context patches that an image can have."""
        area = self.context[0] * self.context[1]
        # The part of a target that lies in the context wherever both are.
        common = math.prod(
            max(0, own + other - cells)
            for own, other, cells in zip(self.context, self.target, grid, strict=True)
        )
        whole = min(area, least_context(grid) - 1 + self.target[0] * self.target[1])
        return max(area - common, whole)


class Blocks(NamedTuple):
    """Numbers of the patches of each image's blocks, in row-major order of the grid."""

    targets: Int[Tensor, "batch targets patches"]
    """int64, the patches of each target block."""
    context: Int[Tensor, "batch most"]
    """int64, the patches of the context first, then others that fill the row up."""
    present: Bool[Tensor, "batch most"]
    """True for patches of the context."""


def least_context(grid: tuple[int, int]) -> int:
    """Return the number of patches that the context of an image keeps at least."""
    return max(1, round(LEAST_CONTEXT * grid[0] * grid[1]))


def draw_blocks(keys: Int[Tensor, " batch"], grid: tuple[int, int], sizes: BlockSizes) -> Blocks:
    """Draw the places of the blocks of each image, every place equally likely.

    The context is its block without the target blocks. A target block that would leave fewer
    patches than `least_context` stays in the context.

    Args:
        keys: int64 key of each sample.
        grid: Rows and columns of patches.
        sizes: Those of the step.
    """
    draws = randomness.uniform_rows(keys, _PLACES, 2 * (TARGETS + 1))
    draws = draws.view(len(keys), TARGETS + 1, 2)
    targets = _patches(draws[:, :TARGETS], grid, sizes.target)
    context = _patches(draws[:, TARGETS:], grid, sizes.context)[:, 0]
    covered = torch.zeros(
        (len(keys), TARGETS, grid[0] * grid[1]), dtype=torch.bool, device=keys.device
    ).scatter(2, targets, value=True)
    kept = torch.ones_like(context, dtype=torch.bool)
    for target in covered.unbind(1):
        fewer = kept & ~target.gather(1, context)
        enough = fewer.sum(dim=1, keepdim=True) >= least_context(grid)
        kept = torch.where(enough, fewer, kept)
    first = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    first = first[:, : sizes.most_context(grid)]
    return Blocks(targets, context.gather(1, first), kept.gather(1, first))


def _patches(
    draws: Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> Int[Tensor, "batch blocks patches"]:
    """Return the patches of blocks at uniform places."""
    rows, columns = grid
    places = draws.new_tensor([rows - size[0] + 1, columns - size[1] + 1])
    top, left = (draws * places).floor().long().unbind(2)
    row = torch.arange(size[0], device=draws.device)[:, None] * columns
    inside = (row + torch.arange(size[1], device=draws.device)).flatten()
    return (top * columns + left)[:, :, None] + inside
