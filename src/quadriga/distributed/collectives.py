"""Collectives that do nothing at world size 1, and access to shards and full tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from quadriga.distributed.environment import DistEnv
from quadriga.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Value = TypeVar("Value")


def all_reduce_sum(tensor: Tensor, env: DistEnv, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum `tensor` over all ranks in place and return it.

    Args:
        tensor: Any shape and dtype that the backend supports.
        env: This process among the run's.
        group: A group of all ranks; the default group if None.
    """
    if env.world_size > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def broadcast_value(value: Value, env: DistEnv) -> Value:
    """Return rank 0's `value` on every rank; it is pickled, so it must come from this program."""
    if env.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_main(function: Callable[[], Value], env: DistEnv) -> Value:
    """Call `function` on rank 0 and return its value on every rank.

    Raises:
        UserError: Rank 0 raised it; raised on every rank, so that no rank waits in a collective.
    """
    outcome: tuple[Value | None, str | None] = (None, None)
    if env.is_main:
        try:
            outcome = (function(), None)
        except UserError as error:
            outcome = (None, str(error))
    value, message = broadcast_value(outcome, env)
    if message is not None:
        everywhere = UserError(message)
        everywhere.on_every_rank = True
        raise everywhere
    return value  # type: ignore[return-value]


def on_all(function: Callable[[], Value], env: DistEnv) -> Value:
    """Call `function` on every rank and return each rank's own value.

    Raises:
        UserError: A rank raised it; raised on every rank, so that no rank waits in a collective.
    """
    value, message = None, None
    try:
        value = function()
    except UserError as error:
        message = str(error)
    messages = [text for text in all_gather_values(message, env) if text is not None]
    if messages:
        everywhere = UserError(messages[0])
        everywhere.on_every_rank = True
        raise everywhere
    return value  # type: ignore[return-value]


def all_gather_values(value: Value, env: DistEnv) -> list[Value]:
    """Return every rank's `value` in rank order, on every rank."""
    if env.world_size == 1:
        return [value]
    boxes: list[Value] = [value] * env.world_size
    dist.all_gather_object(boxes, value)
    return boxes


def barrier(env: DistEnv) -> None:
    """Wait until every rank has called this function."""
    if env.world_size > 1:
        dist.barrier()


def slice_of(total: int, rank: int, world_size: int) -> range:
    """Return the contiguous share of ``range(total)`` of `rank`; sizes differ by at most one."""
    return range(total * rank // world_size, total * (rank + 1) // world_size)


def is_dtensor(value: object) -> TypeGuard[DTensor]:
    """Return whether a value is a sharded or replicated tensor of a device mesh.

    Where no one has imported DTensor there is none: the import takes half as long as torch's.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds: all of it, unless it is sharded."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return whether this rank holds a part of one of the tensors only."""
    return any(is_dtensor(tensor) for tensor in tensors)


def first_element(tensor: Tensor) -> int:
    """Return the row-major offset in the full tensor of this rank's first element.

    Raises:
        ValueError: The tensor is sharded along another dimension than 0.
    """
    if not is_dtensor(tensor):
        return 0
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    for placement in tensor.placements:
        if placement != Replicate() and not (type(placement) is Shard and placement.dim == 0):
            raise ValueError(f"a tensor must be cut into rows, but its placement is {placement}")
    _, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return offset[0] * tensor.shape[1:].numel() if offset else 0


@torch.no_grad()
def copy_whole(target: Tensor, values: Tensor) -> None:
    """Copy a full tensor into `target`, which may be sharded.

    Args:
        target: Full, or sharded along dimension 0.
        values: Same shape as `target`, on any device. A sharded one is gathered, so every rank
            must call this function.
    """
    own, values = local_part(target), whole(values)
    first = first_element(target)
    own.copy_(values.reshape(-1)[first : first + own.numel()].view(own.shape))


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; every rank calls it, in the same order, if it is sharded."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor
