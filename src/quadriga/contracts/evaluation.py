"""Interface of evaluators: their input, their result."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quadriga.contracts.data import Dataset, Split, Transform
from quadriga.contracts.objective import Objective
from quadriga.distributed.environment import DistEnv


@dataclass
class EvaluationContext:
    """The input of an evaluator. Evaluators change neither the objective nor training state."""

    objective: Objective
    fresh: Callable[[], Objective]
    """Makes the same objective randomly initialised, the baseline of every metric."""
    data: Callable[[Split], Dataset]
    """Returns the evaluated part of a split. The first call opens it; later evaluations of the
    run get the same object."""
    transform: Transform
    """The deterministic evaluation transform."""
    env: DistEnv
    seed: int
    output: Path
    """An existing folder for pictures."""
    classes: tuple[str, ...] = ()
    """Class names of the objective's outputs, in order; empty where it classifies nothing, or
    where they are not known."""
    workers: int = 0
    """Worker processes that read samples; 0 reads in the calling process."""
    precision: str = "float32"
    """Dtype of the objective's matrix products: float32 or bfloat16."""
    report_progress: Callable[[str, int, int], None] = field(default=lambda what, done, total: None)
    """Called with (what, done, total) from time to time, for a progress bar."""
    warn: Callable[[str], None] = field(default=lambda text: None)
    """Called with one line per sample that cannot be read."""
    cache: dict[str, Any] = field(default_factory=dict)
    """Shared by the protocols of one evaluation, so that features are extracted once."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Shared by all evaluations of a run in one process: what does not depend on the weights."""

    def reduced_precision(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the objective computes in `precision`."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.env.device.type, getattr(torch, self.precision))


@dataclass(frozen=True)
class EvaluationResult:
    """Named metrics and pictures of one protocol."""

    protocol: str
    metrics: Mapping[str, float]
    """Name -> value; ``top1`` and ``top1_random`` (the random encoder) in percent."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """File name in the output folder -> caption."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that explain the metrics, such as the number of samples or the best learning
    rate."""


class Evaluator(ABC):
    """One protocol, which computes named metrics of a frozen model."""

    def check(self, context: EvaluationContext) -> None:
        """Check that the protocol can evaluate this objective on this data; called before training.

        The check opens the splits that `run` reads, so that missing data fails before training.

        Raises:
            UserError: The protocol cannot evaluate this objective or data.
        """
        return None

    @abstractmethod
    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Evaluate; every rank calls it and gets the same result."""
