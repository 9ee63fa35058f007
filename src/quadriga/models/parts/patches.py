"""Images as sequences of patches, and back."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def patchify(
    images: Float[Tensor, "batch channels height width"], patch_px: int
) -> Float[Tensor, "batch patches pixels"]:
    """Cut images into patches, row by row.

    Args:
        images: Height and width are multiples of `patch_px`.
        patch_px: Side of a patch.

    Returns:
        (batch, patches, channels * patch_px^2), the pixels of a patch ordered by channel, row and
        column, like a convolution's kernel.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_px, width // patch_px
    cut = images.reshape(batch, channels, rows, patch_px, columns, patch_px)
    pixels = channels * patch_px**2
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, pixels)


def unpatchify(
    patches: Float[Tensor, "batch patches pixels"], patch_px: int, rows: int
) -> Float[Tensor, "batch channels height width"]:
    """Assemble images from patches; the inverse of `patchify`.

    Args:
        patches: As `patchify` returns them.
        patch_px: Side of a patch.
        rows: Rows of patches of an image.
    """
    batch, count, pixels = patches.shape
    columns, channels = count // rows, pixels // patch_px**2
    grid = patches.reshape(batch, rows, columns, channels, patch_px, patch_px)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(
        batch, channels, rows * patch_px, columns * patch_px
    )


def channels_last(
    patches: Float[Tensor, "*any pixels"], channels: int
) -> Float[Tensor, "*any pixels"]:
    """Reorder each patch's pixels from (channel, row, column) to (row, column, channel)."""
    split = patches.reshape(*patches.shape[:-1], channels, patches.shape[-1] // channels)
    return split.transpose(-1, -2).flatten(-2)


def channels_first(
    patches: Float[Tensor, "*any pixels"], channels: int
) -> Float[Tensor, "*any pixels"]:
    """Reorder each patch's pixels from (row, column, channel) to (channel, row, column)."""
    split = patches.reshape(*patches.shape[:-1], patches.shape[-1] // channels, channels)
    return split.transpose(-1, -2).flatten(-2)


def take_rows(
    sequences: Float[Tensor, "batch tokens features"], order: Int[Tensor, "batch taken"]
) -> Float[Tensor, "batch taken features"]:
    """Return the tokens of each sequence that `order` names, in its order.

    Args:
        sequences: The sequences.
        order: int64 positions of tokens in their own sequence.
    """
    batch, length, features = sequences.shape
    # Copies whole rows; `gather` with an expanded index would look up each feature separately.
    start = torch.arange(batch, device=order.device)[:, None] * length
    rows = sequences.reshape(batch * length, features).index_select(0, (order + start).flatten())
    return rows.view(batch, order.shape[1], features)
