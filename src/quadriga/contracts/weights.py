"""Weights of another run or file that a new run starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """The weights of a run, a checkpoint or a file."""

    path: Path
    """The path that the user gave."""
    tensors: Mapping[str, Tensor]
    """Name -> tensor on the CPU. For a run or a checkpoint the names are the objective's."""
    config: Mapping[str, Any] | None
    """The values of the run's config, as in its config.json; None for a file."""
    stages: tuple[Mapping[str, Tensor], ...] = ()
    """For a file in the published modular layout (``model_stages``): the tensors of each stage
    under timm's names, with blocks numbered from 0 in each stage. `tensors` then holds only the
    file's other tensors, if any."""
    notes: Mapping[str, Any] | None = None
    """Plain values that a file holds in addition to its tensors."""


@dataclass(frozen=True, kw_only=True)
class FrozenSource:
    """Where an encoder of an objective comes from that is never trained."""

    part: str
    """Name of the module in the objective: an encoder."""
    option: str
    """The option that names the path, for messages."""
    path: str
    """A run, a checkpoint or a file of weights."""
