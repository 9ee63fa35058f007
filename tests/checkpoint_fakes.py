"""An executor for tests of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from quadriga.contracts import Batch, Executor, Objective, StepOutput


class Tensors(Executor):
    """An executor that is nothing but its state."""

    def __init__(self, value: float, shape: tuple[int, ...] = (3, 4)) -> None:
        self.state = {
            "objective.weight": torch.full(shape, value),
            "objective.flag": torch.tensor(True),
            "optimizer.weight.step": torch.tensor(value),
            "optimizer.weight.half": torch.full((5,), value, dtype=torch.bfloat16),
        }

    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
        yield from ()

    def frozen(self, weights: str = "raw") -> AbstractContextManager[Objective]:
        """Refuse: there is nothing to evaluate here."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state
