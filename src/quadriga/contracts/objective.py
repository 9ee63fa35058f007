"""What a method is: an objective, its batch, its loss, its progress."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

Batch = dict[str, Tensor]
"""Tensors of one micro-batch, each with the batch in dimension 0. Always there: ``index`` (int64,
the samples' indices) and ``key`` (int64, the samples' random keys, folded from seed, epoch and
index). Images are ``image`` (batch, 3, height, width), labels are ``label`` (int64).
Where images are mixed, ``mixed_label`` (int64) is the label of the image that was mixed in, and
``share`` (float32, 0 to 1) how much of the sample is still of its own ``label``.

Text is ``ids`` and ``segments`` (int64, (batch, length), padded with 0 at the end) and ``lengths``
(int64, the real tokens of each sample). What `Transform.batch` adds on the device may have other
dimensions; a host that needs a number of the batch reads it from a shape, without waiting for the
device: ``tokens`` (int64, (real,)) are the places of the real tokens in the flattened ``ids``,
ascending; ``masked`` (int64, (hidden,)) are the places among those of the tokens to predict, and
``targets`` (int64, (hidden,)) what they were. ``is_random`` (int64, 0 or 1) says whether the
second segment is a random one."""


class LossOutput(NamedTuple):
    """What an objective returns for one micro-batch."""

    loss: Tensor
    """Scalar: the sum over targets, or a plain mean when `count` is None."""
    count: Tensor | None  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    """Scalar: the number of targets in `loss`. None: every micro-batch weighs the same."""
    metrics: Mapping[str, tuple[Tensor, Tensor]]
    """Name -> (sum, count), detached; summed over micro-batches and ranks, then divided."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: everything a schedule, a momentum or a temperature may depend on."""

    step: int
    """The optimizer step that is being made, from 0."""
    total_steps: int
    """The number of optimizer steps of the whole run."""
    batch_size: int
    """Samples of one optimizer step, over all ranks."""
    dataset_size: int
    """Samples of one epoch."""

    @property
    def samples(self) -> int:
        """Samples seen before this step."""
        return self.step * self.batch_size

    @property
    def epoch(self) -> float:
        """Epochs finished before this step; epochs follow one another without a gap."""
        return self.samples / self.dataset_size


class Objective(nn.Module, ABC):
    """Model, loss and the method's state (a teacher, a queue)."""

    metric_names: tuple[str, ...] = ()
    """Every metric that `forward` may return; a micro-batch may leave some out."""
    tokens_per_sample: int | None = None
    """Tokens that a sample's input is cut into, those that a mask hides too; None where samples
    differ. It decides the throughput in tokens, and nothing else."""
    independent_parts: tuple[str, ...] = ()
    """Beginnings of the names of parameters that train side by side and know nothing of each
    other: the gradient of each is clipped to a norm of its own. Empty: all together."""

    @abstractmethod
    def forward(self, batch: Batch) -> LossOutput:
        """Compute the loss of one micro-batch on the device the batch is on."""

    @abstractmethod
    def initialise(self, seed: int) -> None:
        """Fill every parameter and buffer in place, keyed by (seed, its full name).

        The module may come from the meta device with undefined memory: nothing may be left as
        it was.
        """

    def whole_parameters(self) -> Mapping[str, nn.Parameter] | None:
        """Return the trainable parameters of the model that this objective trains a part of.

        By their names there, on the meta device; None where the objective is the whole. The
        optimizer's rules (decay, layers, learning rates) are those of the whole.
        """
        return None

    def name_in_whole(self, name: str) -> str:
        """Return what one of the objective's own trainable parameters is called there."""
        return name

    def before_step(self, progress: Progress) -> None:
        """Set what depends on progress (momentum, temperature); once per optimizer step."""
        return None

    def after_step(self, progress: Progress) -> None:
        """Update what follows the weights (a teacher's average); once per optimizer step."""
        return None


@runtime_checkable
class Encoder(Protocol):
    """An objective whose encoder can be evaluated on images."""

    def features(self, images: Tensor) -> Tensor:
        """Return one vector per image.

        Args:
            images: Normalised images, float (batch, 3, height, width).

        Returns:
            Float (batch, width).
        """
        ...
