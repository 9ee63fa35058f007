"""The process groups of a pipeline: each use has its own, so that none waits behind another.

NCCL knows no tags and carries out the operations of a group in order. So activations and
gradients travel in groups of their own, one for each pair of neighbours and direction; and the
update, which runs beside the passes, has its own groups for the replicas, the tied parameters and
the table of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from quadriga.distributed.environment import DistEnv
from quadriga.pipeline.topology import Topology

Group = Any
"""A process group; torch's type is not exported on every platform."""


@dataclass(frozen=True)
class Groups:
    """The groups that this rank is in; None where there is nobody else."""

    stage: int
    replica: int
    previous: int | None
    """Rank of the stage before in the same copy."""
    following: int | None
    """Rank of the stage behind."""
    activations_in: Group | None
    activations_out: Group | None
    gradients_in: Group | None
    gradients_out: Group | None
    replicas: Group | None
    """The ranks that hold copies of this stage."""
    tied: dict[tuple[int, ...], Group]
    """Stages that share parameters -> the ranks of those stages in this copy."""
    pipeline: Group | None
    """All ranks of this copy, for torch's schedules."""
    world: Group | None
    """All ranks, for the sums of an update."""


def make_groups(topology: Topology, env: DistEnv, ties: Sequence[tuple[int, ...]] = ()) -> Groups:
    """Make all groups; every rank calls it, with the same arguments.

    Args:
        topology: Where the stages are.
        env: This rank.
        ties: Sets of stages that share parameters, ascending.
    """
    stage, replica = topology.place_of(env.rank)

    def group(ranks: Sequence[int]) -> Group | None:
        if len(ranks) < 2:
            return None
        made = dist.new_group(sorted(ranks))
        return made if env.rank in ranks else None

    activations: dict[int, Group | None] = {}
    gradients: dict[int, Group | None] = {}
    tied: dict[tuple[int, ...], Group] = {}
    for copy in range(topology.replicas):
        ranks = [of_stage[copy] for of_stage in topology.ranks]
        for before in range(topology.stages - 1):
            pair = [ranks[before], ranks[before + 1]]
            forward, backward = group(pair), group(pair)
            if copy == replica:
                activations[before], gradients[before] = forward, backward
        for stages in ties:
            made = group([ranks[s] for s in stages])
            if copy == replica and stage in stages:
                tied[stages] = made
    replicas = [group(of_stage) for of_stage in topology.ranks]
    pipelines = [
        group([of_stage[c] for of_stage in topology.ranks]) for c in range(topology.replicas)
    ]
    world = group(range(env.world_size))
    own = [of_stage[replica] for of_stage in topology.ranks]
    return Groups(
        stage=stage,
        replica=replica,
        previous=own[stage - 1] if stage > 0 else None,
        following=own[stage + 1] if stage + 1 < len(own) else None,
        activations_in=activations.get(stage - 1),
        activations_out=activations.get(stage),
        gradients_in=gradients.get(stage),
        gradients_out=gradients.get(stage - 1),
        replicas=replicas[stage],
        tied=tied,
        pipeline=pipelines[replica],
        world=world,
    )
