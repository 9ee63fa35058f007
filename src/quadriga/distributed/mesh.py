"""The ranks of a run as a mesh with named axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from quadriga.distributed.environment import SINGLE, DistEnv

AXES = ("data", "shard", "stage", "expert")
"""data: replicas of the model; shard: shards of its parameters; stage: pipeline stages; expert:
groups of its experts. A step's samples are distributed over all axes except ``stage``."""


@final
@dataclass(frozen=True)
class Ranks:
    """This process, and the device mesh of all processes."""

    env: DistEnv
    mesh: DeviceMesh | None = None
    """Its dimensions are `AXES`. None where every rank holds a replica, which needs no groups."""

    def size(self, axis: str) -> int:
        """Return the number of ranks along one of `AXES`."""
        if self.mesh is None:
            return self.env.world_size if axis == "data" else 1
        return self.mesh.size(AXES.index(axis))

    @property
    def samples(self) -> SampleGroup:
        """The ranks that a step's samples are distributed over."""
        if self.env.world_size == 1:
            return ALONE
        if self.mesh is None or self.size("stage") == 1:
            return SampleGroup(self.env.rank, self.env.world_size, dist.group.WORLD)
        flat = self.mesh["data", "shard", "expert"]._flatten("samples")
        return SampleGroup(flat.get_local_rank(), flat.size(), flat.get_group())

    def sharded(self) -> DeviceMesh:
        """Return the mesh (data, shard) for FSDP2, or (shard) where there is one replica.

        Raises:
            ValueError: There is no mesh, because every rank holds a replica.
        """
        if self.mesh is None:
            raise ValueError("ranks that hold copies have no mesh")
        return self.mesh["shard"] if self.size("data") == 1 else self.mesh["data", "shard"]


@final
@dataclass(frozen=True)
class SampleGroup:
    """The ranks that share a step's samples, in the order of the samples' distribution."""

    rank: int
    size: int
    group: dist.ProcessGroup | None
    """None for a group of one rank."""


ALONE = SampleGroup(0, 1, None)
"""The group of a single rank, which has all samples of a step."""


def make_ranks(env: DistEnv, *, shard: int = 1, stage: int = 1, expert: int = 1) -> Ranks:
    """Arrange the ranks on a mesh with axes `AXES`; every rank calls it.

    The data axis has world size / (shard * stage * expert) ranks. The last axis varies fastest
    over consecutive ranks.

    Args:
        env: This process.
        shard: Ranks along the shard axis.
        stage: Ranks along the stage axis.
        expert: Ranks along the expert axis.

    Raises:
        ValueError: The product of the sizes does not divide the number of ranks.
    """
    if env.world_size % (shard * stage * expert):
        raise ValueError(
            f"{shard} x {stage} x {expert} ranks must divide {env.world_size} ranks, but do not"
        )
    if shard * stage * expert == 1:
        return Ranks(env)
    shape = (env.world_size // (shard * stage * expert), shard, stage, expert)
    return Ranks(env, init_device_mesh(env.device.type, shape, mesh_dim_names=AXES))


SINGLE_RANK = Ranks(SINGLE)
"""One process on the CPU."""
