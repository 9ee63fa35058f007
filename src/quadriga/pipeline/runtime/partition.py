"""From an objective to a rank's part of it: one stage, or several that do not touch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn

from quadriga.contracts import Stage

V_SHAPED = ("zbv", "dualpipev")
"""Schedules in which a copy goes down the ranks and back: the first rank has both ends."""


def rank_of_stage(stage: int, ranks: int, schedule: str) -> int:
    """Return which of a copy's ranks holds a stage, where each holds several."""
    if schedule in V_SHAPED and (stage // ranks) % 2:
        return ranks - 1 - stage % ranks
    return stage % ranks


def cut(stages: Sequence[Stage], ranks: int, schedule: str) -> list[Part]:
    """Return the part of each of a copy's ranks."""
    held: list[dict[int, Stage]] = [{} for _ in range(ranks)]
    for number, stage in enumerate(stages):
        held[rank_of_stage(number, ranks, schedule)][number] = stage
    return [Part(of_rank) for of_rank in held]


@final
class Part(nn.Module):
    """The stages of one rank; its tensors have the names they have in the whole objective."""

    def __init__(self, stages: dict[int, Stage]) -> None:
        """Hold stages by number."""
        super().__init__()
        self.stages = nn.ModuleDict({str(number): stage for number, stage in stages.items()})

    @property
    def only(self) -> Stage:
        """The stage of a rank that has one."""
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
        """Give stages from the meta device memory and values; others are moved only."""
        if not any(tensor.is_meta for tensor in self.state_dict().values()):
            return self.to(device)
        self.to_empty(device=device)
        for stage in self.stages.values():
            assert isinstance(stage, Stage)
            stage.initialise(seed)
        return self


def shared_parameters(parts: Sequence[Part]) -> dict[str, tuple[int, ...]]:
    """Return the trainable parameters that several parts hold, and those parts, ascending."""
    holders: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                holders.setdefault(name, []).append(number)
    return {name: tuple(numbers) for name, numbers in holders.items() if len(numbers) > 1}
