"""The part of an objective that a rank holds, and the process groups of a pipeline.

A part is one stage or several.

NCCL has no tags and carries out the operations of a group in order, so each use has a group of its
own. Activations and gradients have one group for each pair of neighbours and direction; the update,
which overlaps with the passes, has groups for the replicas, the tied parameters and the metric
sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quadriga.contracts import Stage
from quadriga.contracts.objective import allocate
from quadriga.distributed.environment import DistEnv
from quadriga.pipeline.topology import Topology

V_SHAPED = ("zbv", "dualpipev")
"""Schedules that place stages down the ranks and back, so the first rank has both ends."""


def rank_of_stage(stage: int, ranks: int, schedule: str) -> int:
    """Return which of a replica's `ranks` ranks, from 0, holds a stage if each holds several."""
    if schedule in V_SHAPED and (stage // ranks) % 2:
        return ranks - 1 - stage % ranks
    return stage % ranks


def cut(stages: Sequence[Stage], ranks: int, schedule: str) -> list[Part]:
    """Return the part of each rank of a replica, in order."""
    held: list[dict[int, Stage]] = [{} for _ in range(ranks)]
    for number, stage in enumerate(stages):
        held[rank_of_stage(number, ranks, schedule)][number] = stage
    return [Part(of_rank) for of_rank in held]


@final
class Part(nn.Module):
    """The stages of one rank; tensors keep their names in the whole objective (global names)."""

    def __init__(self, stages: dict[int, Stage]) -> None:
        """Take the stages by their number in the model."""
        super().__init__()
        self.stages = nn.ModuleDict({str(number): stage for number, stage in stages.items()})

    @property
    def only(self) -> Stage:
        """The stage of a rank that has exactly one."""
        (stage,) = self.stages.values()
        assert isinstance(stage, Stage)
        return stage

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield each parameter once, by its global name; see `nn.Module.named_parameters`."""
        seen: set[str] = set()
        for stage in self.stages.values():
            for name, parameter in stage.named_parameters(prefix, recurse, remove_duplicate):
                if name not in seen:
                    seen.add(name)
                    yield name, parameter

    def state_dict(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the tensors by global name."""
        found: dict[str, Tensor] = {}
        for stage in self.stages.values():
            found |= stage.state_dict()
        return found

    def materialise(self, seed: int, device: torch.device) -> Part:
        """Allocate and initialise the stages if any tensor is on the meta device, else move them.

        Args:
            seed: The run's seed, which determines the values.
            device: Device of the result.
        """
        if not any(tensor.is_meta for tensor in self.state_dict().values()):
            return self.to(device)
        allocate(self, device)
        for stage in self.stages.values():
            assert isinstance(stage, Stage)
            stage.initialise(seed)
        return self


def shared_parameters(parts: Sequence[Part]) -> dict[str, tuple[int, ...]]:
    """Return trainable parameters that several parts hold: name -> those parts, ascending."""
    holders: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                holders.setdefault(name, []).append(number)
    return {name: tuple(numbers) for name, numbers in holders.items() if len(numbers) > 1}


Group = Any
"""A process group; torch's type is not exported on every platform."""


@dataclass(frozen=True)
class Groups:
    """The process groups of this rank; None if a group would have one rank only."""

    stage: int
    replica: int
    previous: int | None
    """Rank of the previous stage of the same replica; None for the first stage."""
    following: int | None
    """Rank of the next stage of the same replica; None for the last stage."""
    activations_in: Group | None
    activations_out: Group | None
    gradients_in: Group | None
    gradients_out: Group | None
    replicas: Group | None
    """The ranks that hold this stage in any replica."""
    tied: dict[tuple[int, ...], Group]
    """Stages that share parameters -> the ranks of those stages in this replica."""
    pipeline: Group | None
    """All ranks of this replica, for torch's schedules."""
    world: Group | None
    """All ranks, for the sums of an update."""


def make_groups(topology: Topology, env: DistEnv, ties: Sequence[tuple[int, ...]] = ()) -> Groups:
    """Make all groups; collective: every rank passes the same `topology` and `ties`.

    Args:
        topology: The ranks of each stage and replica.
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
