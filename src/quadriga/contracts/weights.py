"""Weights of another run or file, as they are handed to what starts from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """What lies at a path."""

    path: Path
    """What the user named."""
    tensors: Mapping[str, Tensor]
    """Name -> tensor on the CPU. Those of a run or a checkpoint have the objective's names."""
    config: Mapping[str, Any] | None
    """The values of the run's config, as in its config.json; None for a file."""
    stages: tuple[Mapping[str, Tensor], ...] = ()
    """Of a file in the published modular layout (``model_stages``), the tensors of each stage under
    timm's names, blocks numbered from 0 in each stage; `tensors` is empty then, if the file holds
    nothing else."""
    notes: Mapping[str, Any] | None = None
    """Plain values that a file carries beside its tensors."""
