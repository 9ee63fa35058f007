"""Interfaces of stages (slices of a model) and of objectives that can be cut into stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from quadriga.contracts.objective import Batch, LossOutput
from quadriga.errors import UserError


def check_depths(depths: Sequence[int], depth: int) -> None:
    """Check that stages of `depths` blocks add up to a model of `depth` blocks.

    Raises:
        UserError: They do not, or a depth is negative.
    """
    if not depths or min(depths) < 0 or sum(depths) != depth:
        raise UserError(
            f"the stages' depths must be 0 or more and add up to model.depth={depth}, "
            f"but are {list(depths)}; change executor.depths"
        )


class Stage(nn.Module, ABC):
    """A contiguous slice of a model: the unit of pipeline placement and of modular training.

    Its parameters keep their names in the whole objective. A parameter that two stages share (tied
    embeddings) has the same name in both.
    """

    index: int
    """Position of the stage, from 0."""

    @abstractmethod
    def forward(self, hidden: Tensor | None, batch: Batch) -> Tensor | LossOutput:
        """Map the previous stage's output to the next one's input.

        Args:
            hidden: Output of the previous stage; None for the first stage.
            batch: The whole micro-batch; every stage has its own copy.

        Returns:
            The next stage's `hidden`, or the loss from the last stage.
        """

    @abstractmethod
    def hidden_shape(self, batch: Batch) -> tuple[int, ...]:
        """Return the shape of `hidden`, without waiting for the device."""

    @abstractmethod
    def initialise(self, seed: int) -> None:
        """Fill every parameter and buffer in place, as `Objective.initialise` does."""


@runtime_checkable
class Splittable(Protocol):
    """An objective that can be cut into stages; applied in order they compute its `forward`."""

    depth: int
    """Number of blocks; cuts are between blocks."""

    def stages(self, depths: Sequence[int]) -> list[Stage]:
        """Cut into ``len(depths)`` stages that keep the global parameter names.

        The stages hold the objective's own modules, which may be on the meta device. The input
        embedding belongs to the first stage, the loss to the last.

        Args:
            depths: Blocks of each stage, 0 allowed; they add up to `depth`.
        """
        ...
