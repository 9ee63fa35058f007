"""What an evaluator is, what it is given and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quadriga.contracts.data import Dataset, Split, Transform
from quadriga.contracts.objective import Objective
from quadriga.distributed.environment import DistEnv


@dataclass
class EvaluationContext:
    """What an evaluator works on. Everything is frozen; nothing of the training is touched."""

    objective: Objective
    fresh: Callable[[], Objective]
    """Make the same objective randomly initialised: the baseline of every number."""
    data: Callable[[Split], Dataset]
    """Give the part of a split that is evaluated on. It is opened when it is first asked for, and
    the same object at every later evaluation of the run."""
    transform: Transform
    """The evaluation transform: deterministic, nothing random."""
    env: DistEnv
    seed: int
    output: Path
    """An existing folder for pictures."""
    workers: int = 0
    report_progress: Callable[[str, int, int], None] = field(default=lambda what, done, total: None)
    """Told (what, done, total) now and then, for a progress bar."""
    warn: Callable[[str], None] = field(default=lambda text: None)
    """Told one line per sample that cannot be read."""
    cache: dict[str, Any] = field(default_factory=dict)
    """What the protocols of one call share: features are extracted once for all of them."""


@dataclass(frozen=True)
class EvaluationResult:
    """Named metrics and pictures of one protocol."""

    protocol: str
    metrics: Mapping[str, float]
    """Name -> value; ``top1`` and ``top1_random`` (the random encoder) in percent."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """File name in the output folder -> caption."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that explain the metrics: how many samples, which learning rate won."""


class Evaluator(ABC):
    """One protocol: a frozen model to named metrics."""

    def check(self, context: EvaluationContext) -> None:
        """Check that the protocol can evaluate this objective on this data; called before training.

        What `run` will ask of `EvaluationContext.data` is opened here, so that it is not found
        missing when the training is over.

        Raises:
            UserError: It cannot.
        """
        return None

    @abstractmethod
    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Evaluate; every rank calls it, every rank gets the same result."""
