"""Boxes of a batch of images, drawn and rasterised on the device without waiting for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class Boxes(NamedTuple):
    """One box per image: int64 (batch,) each, in pixels."""

    top: Int64[Tensor, " batch"]
    left: Int64[Tensor, " batch"]
    height: Int64[Tensor, " batch"]
    width: Int64[Tensor, " batch"]


def inside(boxes: Boxes, height: int, width: int) -> Bool[Tensor, "batch 1 {height} {width}"]:
    """Return which pixels of images of this size lie inside their box."""
    device = boxes.top.device
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    top, left = boxes.top[:, None], boxes.left[:, None]
    in_rows = (rows >= top) & (rows < top + boxes.height[:, None])
    in_columns = (columns >= left) & (columns < left + boxes.width[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def whole(
    uniform: Float[Tensor, " batch"], bound: int | Int64[Tensor, " batch"]
) -> Int64[Tensor, " batch"]:
    """Map uniforms of 24 bits in [0, 1) to whole numbers in [0, bound)."""
    return (uniform * bound).to(torch.int64)
