"""An executor that has only its state: what a checkpoint of a trained objective holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from quadriga.contracts import Batch, Executor, Objective, StepOutput


class Trained(Executor):
    """An executor whose state is that of an objective, with moving averages."""

    def __init__(self, objective: nn.Module, has_ema: bool = True) -> None:
        self.objective, self.has_ema = objective, has_ema

    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
        yield from ()

    def ema(self) -> dict[str, Tensor]:
        return {
            name: parameter.detach() / 2 - 1
            for name, parameter in self.objective.named_parameters()
            if self.has_ema
        }

    def frozen(self, weights: str = "raw") -> AbstractContextManager[Objective]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        state = {f"objective.{name}": t for name, t in self.objective.state_dict().items()}
        for name, ema in self.ema().items():
            state |= {f"ema.{name}": ema, f"optimizer.{name}.exp_avg": ema * 3}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("a warm start loads no executor")
