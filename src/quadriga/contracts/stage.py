"""What a slice of a model is, and what can be cut into slices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from quadriga.contracts.objective import Batch, LossOutput
from quadriga.errors import UserError


def check_depths(depths: Sequence[int], depth: int) -> None:
    """Check that stages of so many blocks make up the model.

    Raises:
        UserError: They do not.
    """
    if not depths or min(depths) < 0 or sum(depths) != depth:
        raise UserError(
            f"the stages' depths must be 0 or more and add up to model.depth={depth}, "
            f"but are {list(depths)}; change executor.depths"
        )


class Stage(nn.Module, ABC):
    """A contiguous slice of a model: the unit of pipeline placement and of modular training.

    Its parameters have the names that they have in the whole objective. A parameter that two stages
    share (tied embeddings) has the same name in both.
    """

    index: int
    """Position of the stage, from 0."""

    @abstractmethod
    def forward(self, hidden: Tensor | None, batch: Batch) -> Tensor | LossOutput:
        """Map the previous stage's output to the next one's input.

        Args:
            hidden: What the stage before returned; None for the first.
            batch: The whole micro-batch; every stage reads it by itself.

        Returns:
            The next stage's `hidden`, or from the last stage the loss.
        """

    @abstractmethod
    def hidden_shape(self, batch: Batch) -> tuple[int, ...]:
        """Return the shape of what goes from stage to stage, without waiting for the device."""

    @abstractmethod
    def initialise(self, seed: int) -> None:
        """Fill every parameter and buffer in place, as `Objective.initialise` does."""


@runtime_checkable
class Splittable(Protocol):
    """An objective that can be cut into stages; run in turn they compute its `forward`."""

    depth: int
    """Number of blocks, the units of a cut."""

    def stages(self, depths: Sequence[int]) -> list[Stage]:
        """Cut into ``len(depths)`` stages of so many blocks each, keeping the global names.

        The stages hold the objective's own modules, which may be on the meta device: what embeds
        the input belongs to the first, what computes the loss to the last.

        Args:
            depths: Blocks of each stage, 0 allowed; they add up to `depth`.
        """
        ...
