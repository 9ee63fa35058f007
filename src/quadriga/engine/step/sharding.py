"""How ranks hold a model: a replica each, a shard each (FSDP2), or shards in groups (HSDP)."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast, final

import torch
import torch.distributed as dist
from torch import Tensor

from quadriga.contracts import Objective, PooledObjective
from quadriga.distributed.allocator import LARGEST_KEPT_SHARDED, keep_freed_memory
from quadriga.distributed.collectives import local_part
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.mesh import Ranks
from quadriga.engine.build import build_on_meta, give_memory
from quadriga.engine.run_config import RunConfig, TrainConfig
from quadriga.engine.step.blocks import blocks_of
from quadriga.engine.step.gradients import GradientSum
from quadriga.engine.step.precision import dtype_of
from quadriga.errors import UserError, nearest_divisors

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class Layout(ABC):
    """How the ranks hold an objective; its gradients become sums over all ranks."""

    device: torch.device
    is_joint = False
    """Whether modules contain collectives, so that all ranks must call each equally often."""

    def begin_step(self) -> None:
        """Prepare for the first backward pass of a step."""
        return None

    @abstractmethod
    def backward(
        self, is_last: bool, complete: Sequence[str] = ()
    ) -> contextlib.AbstractContextManager[None]:
        """Return the context of one backward pass; after the last one the gradients are summed.

        Args:
            is_last: Whether it is the last backward pass of the step.
            complete: Name prefixes of parameters whose gradients are complete before it.
        """

    def square_sum(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the sum of squares of all elements over all shards, a float32 scalar."""
        if not tensors:
            return torch.zeros((), device=self.device)
        return torch.stack(torch._foreach_norm([local_part(t) for t in tensors])).square().sum()

    def take_exposed_seconds(self) -> float | None:
        """Return the seconds of exposed communication since the last call; None if unknown."""
        return None


@final
class Single(Layout):
    """One rank without communication."""

    def __init__(self, ranks: Ranks) -> None:
        """Store the device."""
        self.device = ranks.env.device

    def backward(
        self, is_last: bool, complete: Sequence[str] = ()
    ) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()


@final
class Replicated(Layout):
    """Every rank holds a replica of the whole objective."""

    def __init__(self, objective: Objective, ranks: Ranks) -> None:
        """Set up the gradient sum of an objective on the device; every rank calls it."""
        self.device = ranks.env.device
        trained = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
        self._sum = GradientSum(trained, ranks.samples)

    def begin_step(self) -> None:
        """Set the gradients to zero."""
        self._sum.begin()

    def backward(
        self, is_last: bool, complete: Sequence[str] = ()
    ) -> contextlib.AbstractContextManager[None]:
        """Return a context that sums the gradients over the ranks for the last pass only."""
        return self._sum.last_backward(complete) if is_last else contextlib.nullcontext()

    def take_exposed_seconds(self) -> float | None:
        """Return the seconds of exposed communication since the last call."""
        return self._sum.timer.take_seconds()


@final
class Sharded(Layout):
    """FSDP2: weights, gradients and optimizer state are sharded along dimension 0.

    Each block is gathered for its computation; parameters outside of blocks are gathered once.
    With several replicas (HSDP), gradient shards are also summed over the replicas. Gradients are
    reduce-scattered after every micro-batch, because full ones need the memory of a whole model.
    """

    is_joint = True

    def __init__(self, objective: Objective, train: TrainConfig, ranks: Ranks) -> None:
        """Shard the parameters in place, with or without memory; every rank calls it."""
        from torch.distributed.fsdp import (  # half of torch's own import time: only when used
            FSDPModule,
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        self.device, self._copies, mesh = ranks.env.device, ranks.size("data"), ranks.sharded()
        self._reshard = train.reshard_after_forward
        if self.device.type == "cpu":
            keep_freed_memory(LARGEST_KEPT_SHARDED)
        # A block is gathered in the dtype it computes in, half the bytes. Autocast converts its
        # inputs, as without shards; gradients are summed in float32. Not on the CPU, whose
        # autocast has no layer norm of float32 tokens with weights of another dtype.
        is_reduced = self.device.type == "cuda" and dtype_of(train, self.device) != torch.float32
        dtype = dtype_of(train, self.device) if is_reduced else None
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        outside = MixedPrecisionPolicy(cast_forward_inputs=False)
        for _, block in blocks_of(objective):
            fully_shard(block, mesh=mesh, reshard_after_forward=self._reshard, mp_policy=policy)
        fully_shard(objective, mesh=mesh, reshard_after_forward=False, mp_policy=outside)
        for module in objective.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # sums, not means
                module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
        methods = ("embed", "targets", "combine") if isinstance(objective, PooledObjective) else ()
        for name in (*methods, *objective.entry_points):
            register_fsdp_forward_method(objective, name)
        self._sharded = cast("FSDPModule", objective)

    @contextlib.contextmanager
    def backward(self, is_last: bool, complete: Sequence[str] = ()) -> Iterator[None]:
        """Return a context that reduce-scatters the gradients.

        Without resharding after the forward pass the weights stay gathered for the whole step.
        """
        self._sharded.set_is_last_backward(is_last)
        if not self._reshard:
            self._sharded.set_reshard_after_backward(is_last)
        yield

    def square_sum(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the sum of squares over the shards of one replica.

        Computed as the mean over the replicas in one all-reduce of all ranks: separate reductions
        per replica might round differently, and clipping would make the replicas diverge.
        """
        total = super().square_sum(tensors)
        dist.all_reduce(total)
        return total / self._copies


def place(objective: Objective, train: TrainConfig, ranks: Ranks, seed: int) -> Sharded | None:
    """Shard an objective over the shard axis, and give it memory; every rank calls it.

    Args:
        objective: Changed in place. On the meta device it gets memory once it is sharded, each
            rank its part, and initial values.
        train: How its blocks are gathered.
        ranks: The ranks.
        seed: The seed of the initial values.

    Returns:
        How it is sharded, if it is.
    """
    is_empty = any(tensor.is_meta for tensor in objective.parameters())
    layout = Sharded(objective, train, ranks) if ranks.size("shard") > 1 else None
    if is_empty:
        give_memory(objective, ranks.env.device, seed)
    return layout


def build_to_evaluate(config: RunConfig, ranks: Ranks, seed: int) -> Objective:
    """Make an objective with initial values that is not trained; every rank calls it.

    Sharded or not, its blocks compute in float32, and are gathered only while they compute.

    Args:
        config: The run.
        ranks: The ranks, over whose shard axis it is sharded.
        seed: The seed of its values.
    """
    objective = build_on_meta(config)
    changes = {"precision": "float32", "reshard_after_forward": True}
    place(objective, config.train.model_copy(update=changes), ranks, seed)
    return objective


def make_layout(objective: Objective, train: TrainConfig, ranks: Ranks, seed: int) -> Layout:
    """Place an objective (see `place`) and return the layout that sums its gradients."""
    layout = place(objective, train, ranks, seed)
    if layout is not None:
        return layout
    return Single(ranks) if ranks.env.world_size == 1 else Replicated(objective, ranks)


def shard_ranks(train: TrainConfig, world_size: int, local_world_size: int) -> int:
    """Return how many ranks share one replica of the state.

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
            f"{nearest_divisors(shards, world_size)}, or use train.parallel=fsdp"
        )
    return shards


def describe_layout(train: TrainConfig, env: DistEnv) -> str:
    """Return one line on how the ranks hold the state."""
    if env.world_size == 1:
        return f"{train.parallel} with one rank: it holds the whole state"
    shards = shard_ranks(train, env.world_size, env.local_world_size)
    if shards == 1:
        return f"ddp: each of {env.world_size} ranks holds the state"
    copies = env.world_size // shards
    return f"{train.parallel}: {shards} shards of the state, {copies} " + (
        "copy" if copies == 1 else "copies"
    )
