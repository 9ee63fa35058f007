"""Position embeddings: fixed sine-cosine tables, and interpolation to another grid."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from quadriga.errors import UserError

TEMPERATURE = 10000.0
"""Ratio of the longest to the shortest wavelength (Vaswani et al., 2017, section 3.5)."""


def sincos_1d(positions: Float[Tensor, " tokens"], width: int) -> Float[Tensor, "tokens {width}"]:
    """Return the sine-cosine features of positions on a line.

    Vaswani et al. (2017), section 3.5, with all the sines before all the cosines:
    ``[sin(p w_k), cos(p w_k)]`` with ``w_k = 10000^(-k / (width / 2))``.

    Args:
        positions: Any real positions; their dtype is that of the result.
        width: Number of features, even.
    """
    exponents = torch.arange(width // 2, dtype=positions.dtype, device=positions.device)
    angles = positions[:, None] * TEMPERATURE ** (-exponents / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_table(
    rows: int, columns: int, width: int, prefix: int = 0
) -> Float[Tensor, "tokens {width}"]:
    """Return the fixed two-dimensional position embedding of MAE (He et al., 2022, appendix A.1).

    The first half of the features encodes the column, the second half the row. This is the order
    of the reference implementation, on which its published weights depend.

    Args:
        rows: Rows of the grid.
        columns: Columns of the grid; tokens are in row-major order.
        width: Number of features, a multiple of 4.
        prefix: Number of leading rows of zeros, such as for the class token.

    Returns:
        float32 (prefix + rows * columns, width), computed in float64 on the CPU.
    """
    row = torch.arange(rows, dtype=torch.float64, device="cpu").repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64, device="cpu").repeat(rows)
    table = torch.cat([sincos_1d(column, width // 2), sincos_1d(row, width // 2)], dim=1)
    return functional.pad(table, (0, 0, prefix, 0)).to(torch.float32)


def interpolate_table(
    table: Float[Tensor, "old width"],
    grid: tuple[int, int],
    prefix: int = 0,
    antialias: bool = False,
) -> Float[Tensor, "new width"]:
    """Resample the position embedding of a square grid to another grid, bicubically.

    Args:
        table: `prefix` rows that belong to no patch, then the patches in row-major order.
        grid: Rows and columns of the new grid.
        prefix: Number of leading rows, which are copied.
        antialias: Whether to low-pass before shrinking.

    Returns:
        A table of ``prefix + rows * columns`` rows in the dtype of `table`; `table` itself when
        the grid is the same.

    Raises:
        UserError: The patches of `table` are not a square grid.
    """
    patches, width = table.shape[0] - prefix, table.shape[1]
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise UserError(
            f"a table of positions must cover a square grid after its first {prefix} rows, but has "
            f"{patches} rows left; only square grids can be interpolated"
        )
    if grid == (side, side):
        return table
    old = table[prefix:].reshape(1, side, side, width).permute(0, 3, 1, 2).to(torch.float32)
    new = functional.interpolate(
        old, size=grid, mode="bicubic", align_corners=False, antialias=antialias
    )
    new = new.permute(0, 2, 3, 1).reshape(-1, width).to(table.dtype)
    return torch.cat([table[:prefix], new])


def resampling(side: int, grid: tuple[int, int]) -> Float[Tensor, "new old"]:
    """Return the matrix that resamples the values of a square grid to another grid, bicubically.

    Its product with a table of ``side * side`` rows is what `interpolate_table` computes. A plain
    product is deterministic on a GPU in both directions, which bicubic interpolation is not.

    Args:
        side: Rows and columns of the old grid.
        grid: Rows and columns of the new grid.

    Returns:
        float32 on the CPU; both grids in row-major order.
    """
    cells = side * side
    # One channel for each old cell, which is 1 there and 0 elsewhere.
    identity = torch.eye(cells, dtype=torch.float32, device="cpu").view(1, cells, side, side)
    new = functional.interpolate(identity, size=grid, mode="bicubic", align_corners=False)
    return new.view(cells, -1).t().contiguous()
