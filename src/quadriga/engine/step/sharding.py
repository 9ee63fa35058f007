"""How ranks hold a model: one copy each (DDP), a shard each (FSDP), or shards in groups (HSDP)."""

from __future__ import annotations

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from quadriga.contracts import Objective
from quadriga.distributed.collectives import local_part
from quadriga.distributed.environment import DistEnv
from quadriga.engine.run_config import TrainConfig
from quadriga.engine.step.blocks import blocks_of
from quadriga.errors import UserError


class Layout(ABC):
    """An objective as the ranks hold it; gradients are averaged over all ranks."""

    module: nn.Module
    """What is called with a batch."""

    @abstractmethod
    def micro_batch(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context of one micro-batch: only the last of a step exchanges gradients."""

    def square_sum(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the sum of the squares of all elements, of all shards, as a float32 scalar."""
        return torch.stack(torch._foreach_norm([local_part(t) for t in tensors])).square().sum()


@final
class Single(Layout):
    """One rank: nothing to exchange."""

    def __init__(self, objective: Objective) -> None:
        """Take the objective as it is."""
        self.module = objective

    def micro_batch(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()


@final
class Replicated(Layout):
    """DistributedDataParallel: every rank holds everything."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        """Wrap the objective; every rank calls it."""
        with warnings.catch_warnings():
            # torch 2.13 renames the argument; 2.11 does not know the new name.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.module = DistributedDataParallel(
                objective,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def micro_batch(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Return DDP's context without exchange for all but the last."""
        model = cast(DistributedDataParallel, self.module)
        return contextlib.nullcontext() if is_last else model.no_sync()


@final
class Sharded(Layout):
    """FSDP2: weights, gradients and optimizer state are cut along their first dimension.

    Each block is gathered when its turn comes; what lies outside the blocks is gathered once.
    On a mesh of two dimensions (HSDP) the shards are copied along the first one.
    """

    def __init__(self, objective: Objective, train: TrainConfig, env: DistEnv) -> None:
        """Shard the objective's parameters in place; every rank calls it."""
        self._mesh = make_mesh(train, env)
        self._reshard = train.reshard_after_forward
        # A block is gathered in the type it computes in: half the bytes. Its inputs are left to
        # autocast, as without shards; the gradients are summed in float32. Not on the CPU, whose
        # autocast has no layer norm of float32 tokens with weights of another type.
        is_reduced = train.precision != "float32" and env.device.type == "cuda"
        dtype = getattr(torch, train.precision) if is_reduced else None
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        outside = MixedPrecisionPolicy(cast_forward_inputs=False)
        for _, block in blocks_of(objective):
            fully_shard(
                block, mesh=self._mesh, reshard_after_forward=self._reshard, mp_policy=policy
            )
        fully_shard(objective, mesh=self._mesh, reshard_after_forward=False, mp_policy=outside)
        self.module = objective
        self._sharded = cast(FSDPModule, objective)

    @contextlib.contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Return a context that exchanges gradients for the last only.

        Without resharding after the forward pass the weights stay gathered for the whole step.
        """
        self._sharded.set_requires_gradient_sync(is_last)
        self._sharded.set_is_last_backward(is_last)
        if not self._reshard:
            self._sharded.set_reshard_after_backward(is_last)
        yield

    def square_sum(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the sum of the squares over the shards of one copy.

        It is the mean over the copies, in one reduction of all ranks: groups that reduced each for
        itself might round differently, and their copies would drift apart with the clipping.
        """
        total = super().square_sum(tensors)
        dist.all_reduce(total)
        return total / (self._mesh.size() // self._mesh.size(self._mesh.ndim - 1))


def make_layout(objective: Objective, train: TrainConfig, env: DistEnv) -> Layout:
    """Lay an objective out over the ranks; every rank calls it.

    Raises:
        UserError: The ranks cannot be grouped as `train` says.
    """
    if env.world_size == 1:
        return Single(objective)
    if train.parallel == "ddp":
        return Replicated(objective, env.device)
    return Sharded(objective, train, env)


def make_mesh(train: TrainConfig, env: DistEnv) -> DeviceMesh:
    """Return the mesh of the ranks: (shards,) or (copies, shards)."""
    if train.parallel == "fsdp":
        return init_device_mesh(env.device.type, (env.world_size,), mesh_dim_names=("shard",))
    shards = shard_ranks(train, env.world_size, env.local_world_size)
    shape = (env.world_size // shards, shards)
    return init_device_mesh(env.device.type, shape, mesh_dim_names=("replicate", "shard"))


def shard_ranks(train: TrainConfig, world_size: int, local_world_size: int) -> int:
    """Return how many ranks share one copy of the state.

    Raises:
        UserError: The ranks cannot be grouped as `train` says.
    """
    if train.parallel == "ddp":
        return 1
    if train.parallel == "fsdp":
        return world_size
    shards = train.shard_ranks or local_world_size
    if world_size % shards:
        raise UserError(
            f"train.shard_ranks must divide the number of ranks ({world_size}), but is {shards}; "
            "change it or use train.parallel=fsdp"
        )
    return shards


def describe_layout(train: TrainConfig, env: DistEnv) -> str:
    """Return the line that says how the ranks hold the state."""
    if env.world_size == 1:
        return f"{train.parallel} with one rank: it holds the whole state"
    shards = shard_ranks(train, env.world_size, env.local_world_size)
    if shards == 1:
        return f"ddp: each of {env.world_size} ranks holds the state"
    copies = env.world_size // shards
    return f"{train.parallel}: {shards} shards of the state, {copies} " + (
        "copy" if copies == 1 else "copies"
    )
