"""Sharded tensors: the part that a rank holds, and the whole."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; every rank calls it, in the same order, if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
