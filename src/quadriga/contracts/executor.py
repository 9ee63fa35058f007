"""What makes optimizer steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import Tensor

from quadriga.contracts.objective import MicroBatch, Objective


class StepOutput(NamedTuple):
    """What an executor reports of one optimizer step, the same on every rank."""

    step: int
    metrics: Mapping[str, Tensor]
    """Name -> scalar, already divided; ``loss`` is one of them."""
    grad_norm: Tensor
    """Scalar: the global gradient norm before clipping."""
    lr: float
    samples: int
    """Samples of this step over all ranks."""
    seconds: Mapping[str, float]
    """This rank's wall time by phase (`quadriga.engine.meters.activity`), and ``step`` in all."""
    skipped: bool = False
    """Whether the update was left out: its gradient was not finite, or the run was told to."""
    stop: bool = False
    """Whether a rank was asked to stop (a signal): the run saves and ends after this step."""


class Executor(ABC):
    """How one optimizer step is executed: data-parallel or pipelined."""

    @abstractmethod
    def run(self, batches: Iterator[MicroBatch], steps: range) -> Iterator[StepOutput]:
        """Make the optimizer steps in `steps`, one output each.

        Args:
            batches: This rank's micro-batches on its device, in order; exactly as many are taken
                as `steps` needs.
            steps: Consecutive step numbers. At their end, and after an output with `stop`, which
                is the last one, the executor is quiet: nothing is in flight, and `state_dict` is
                the state after the last step.
        """

    def close(self) -> None:
        """End what runs beside the steps; the executor is not used afterwards."""
        return None

    @abstractmethod
    def frozen(self, weights: str = "raw") -> AbstractContextManager[Objective]:
        """Return a context that gives the objective, to be evaluated; every rank enters it.

        Its parameters may be sharded: every rank then calls its methods equally often.

        Args:
            weights: "raw" for the weights of the last step, "ema" for their moving average.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state under global, layout-free names."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state that `state_dict` returned, on any layout.

        Raises:
            ValueError: The names are not those of this model and optimizer.
        """

    def match_state(self, names: Collection[str]) -> None:
        """Have `state_dict` return, of the state that comes with the first steps, what a
        checkpoint has; every rank calls it.

        Until then an optimizer has no state: a checkpoint of step 0 holds none, nor one does of a
        parameter without a gradient. What was made is to be read into.

        Args:
            names: Those of the checkpoint's tensors.
        """
        return None
