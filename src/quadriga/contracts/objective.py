"""What a method, a stage and an executor are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

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


class Executor(ABC):
    """How one optimizer step is executed: data-parallel or pipelined."""

    @abstractmethod
    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
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
        """Return a context that gives the whole objective, to be evaluated; every rank enters it.

        Args:
            weights: "raw" for the weights of the last step, "ema" for their moving average.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state under global, layout-free names."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state that `state_dict` returned, on any layout."""
