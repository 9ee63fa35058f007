"""What a method is: the loss of a batch, in two shapes, and what it keeps between steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from quadriga.distributed.slots import Slots, alone

Batch = Mapping[str, Tensor]
"""Tensors of one micro-batch, each with the batch in dimension 0. Always there: ``index`` (int64,
the samples' indices) and ``key`` (int64, the samples' random keys, folded from seed, epoch and
index). Images are ``image`` (batch, 3, height, width), labels are ``label`` (int64). Several
views of each image are ``crops`` (batch, crops, 3, height, width) instead of ``image``.
Where images are mixed, ``mixed_label`` (int64) is the label of the image that was mixed in, and
``share`` (float32, 0 to 1) how much of the sample is still of its own ``label``.

Text is ``ids`` and ``segments`` (int64, (batch, length), padded with 0 at the end) and ``lengths``
(int64, the real tokens of each sample). What `Transform.batch` adds on the device may have other
dimensions; a host that needs a number of the batch reads it from a shape, without waiting for the
device: ``tokens`` (int64, (real,)) are the places of the real tokens in the flattened ``ids``,
ascending; ``masked`` (int64, (hidden,)) are the places among those of the tokens to predict, and
``targets`` (int64, (hidden,)) what they were. ``is_random`` (int64, 0 or 1) says whether the
second segment is a random one."""


@final
class MicroBatch(UserDict[str, Tensor]):
    """A `Batch` on its device that can be made again from what was read."""

    def __init__(
        self,
        tensors: Batch,
        again: Callable[[], MicroBatch] | None = None,
        task: str = "",
        share: float = 1.0,
        others: Mapping[str, Callable[[], MicroBatch]] | None = None,
    ) -> None:
        """Hold the tensors of a micro-batch.

        Args:
            tensors: On the device.
            again: Makes the same micro-batch once more; by default it returns this one.
            task: Name of the task that the samples belong to; empty outside a mixture.
            share: Share of the step's micro-batches, over all ranks, that are of this task.
            others: Name of each other task that a rank computes at the same time -> makes a
                micro-batch of it without samples.
        """
        super().__init__(tensors)
        self.task, self.share, self.others = task, share, others or {}
        # Not a method: whoever keeps it for a second pass must not keep the tensors with it.
        self.again = again or (lambda: self)

    def in_turn(self) -> Iterator[MicroBatch]:
        """Yield an empty micro-batch of each of `others`, and this one, by the tasks' names.

        Ranks that wait for one another within a module so call each module equally often, and in
        one order.
        """
        for task in sorted({self.task, *self.others}):
            yield self if task == self.task else self.others[task]()


Rows = Mapping[str, Tensor]
"""Name -> tensor with the samples of a rank in dimension 0, in the order of their slots."""


class Term(NamedTuple):
    """One part of a loss."""

    total: Tensor
    """Scalar: the sum over targets, or a plain mean where `targets` is None."""
    targets: Tensor | None
    """Scalar: the number of targets in `total`. None: each micro-batch of the step weighs the
    same, and `total` is its mean."""
    weight: float = 1.0
    """Factor of this part in the whole loss."""


class LossOutput(NamedTuple):
    """What an objective returns for one micro-batch, or for one rank's rows of a step.

    The loss of a step is the sum over `terms` of ``weight * total / targets``, with totals and
    targets summed over the whole step first.
    """

    terms: Mapping[str, Term]
    """Name -> part. An objective with one part calls it ``loss``."""
    metrics: Mapping[str, tuple[Tensor, Tensor]]
    """Name -> (sum, count), detached; summed over micro-batches and ranks, then divided."""
    sums: Mapping[str, Tensor] = {}
    """Name -> tensor without a graph, summed over the step and handed to `Objective.after_step`.
    The names and shapes are those of `Objective.sum_shapes`."""
    rows: Rows = {}  # noqa: RUF012
    """Name -> (samples, *any) without a graph, gathered over the step in slot order and handed to
    `Objective.after_step`."""

    @classmethod
    def of(
        cls,
        total: Tensor,
        targets: Tensor | None,
        metrics: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> LossOutput:
        """Return the output of an objective whose loss has one part."""
        return cls({"loss": Term(total, targets)}, metrics or {})

    @property
    def only(self) -> Term:
        """The one part of the loss."""
        (term,) = self.terms.values()
        return term

    @property
    def value(self) -> Tensor:
        """Scalar: the loss of this output alone, as if it were the whole step."""
        parts = [
            term.weight * (term.total if term.targets is None else term.total / term.targets)
            for term in self.terms.values()
        ]
        return sum(parts[1:], parts[0])


@dataclass(frozen=True)
class Progress:
    """Where a run is: everything a schedule, a momentum or a temperature may depend on."""

    step: int
    """The optimizer step that is being made, from 0."""
    total_steps: int
    """The number of optimizer steps of the whole run."""
    batch_size: int
    """Samples of one optimizer step, over all ranks; their mean where steps differ."""
    dataset_size: int
    """Samples of one epoch."""
    counted: int | None = None
    """Samples seen before this step where steps differ in them; None where none does."""

    @property
    def samples(self) -> int:
        """Samples seen before this step."""
        return self.step * self.batch_size if self.counted is None else self.counted

    @property
    def epoch(self) -> float:
        """Epochs finished before this step; epochs follow one another without a gap."""
        return self.samples / self.dataset_size


class Objective(nn.Module, ABC):
    """Model, loss and the method's state (a teacher, a queue), where the loss adds over samples.

    Nothing but `after_step` changes a buffer, so a step that is left out changes none.
    """

    metric_names: tuple[str, ...] = ()
    """Every metric that `forward` may return; a micro-batch may leave some out."""
    term_names: tuple[str, ...] = ("loss",)
    """Every part of the loss that `forward` may return. Where there are several, `counts` says
    their denominators before the step's first backward pass."""
    tokens_per_sample: int | None = None
    """Tokens that a sample's input is cut into, those that a mask hides too; None where samples
    differ. It decides the throughput in tokens, and nothing else."""
    independent_parts: tuple[str, ...] = ()
    """Beginnings of the names of parameters that train side by side and know nothing of each
    other: the gradient of each is clipped to a norm of its own. Empty: all together."""
    entry_points: tuple[str, ...] = ()
    """Methods beside `forward` that run modules and are called from outside, such as
    ``features``: where parameters are sharded, each gathers what it needs."""
    statistics_group: int | None = None
    """How many consecutive samples of a step share statistics in the encoder's batch
    normalisation; None: it has none, or each micro-batch shares them."""
    frozen_parts: tuple[str, ...] = ()
    """Beginnings of the names of parameters that leave the update of this step: they have no
    gradient, decay or moments. Set in `before_step`."""

    @abstractmethod
    def forward(self, batch: Batch) -> LossOutput:
        """Compute the loss of one micro-batch on the device the batch is on."""

    @abstractmethod
    def initialise(self, seed: int) -> None:
        """Fill every parameter and buffer in place, keyed by (seed, its full name).

        The module may come from the meta device with undefined memory: nothing may be left as
        it was. Parameters may be sharded; each rank then fills its own part.
        """

    def after_initial_weights(self) -> None:
        """Take over what starts as a copy of other weights, such as a teacher.

        Called after `initialise`, and again when weights from elsewhere were put in.
        """
        return None

    def counts(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the number of targets of each part of the loss, from shapes and masks alone.

        Objectives with several parts, or whose targets are not the samples, implement it. A part
        that is a mean has one target in each micro-batch.

        Args:
            batch: One micro-batch.
        """
        if self.term_names != ("loss",):
            raise TypeError(f"{type(self).__name__} has several terms and no counts")
        return {"loss": torch.tensor(len(batch["index"]), device=batch["index"].device)}

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every sum that the objective hands to `after_step`."""
        return {}

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

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> None:
        """Update what follows the weights or the step's samples; once per optimizer step.

        Args:
            progress: That of `before_step`.
            sums: What `LossOutput.sums` added up to over the whole step, the same on every rank.
            rows: `LossOutput.rows` of the whole step, in slot order, the same on every rank.
        """
        return None


class PooledObjective(Objective):
    """A method whose gradient couples the samples of a step, or whose head has batch statistics.

    The step's samples are embedded in micro-batches, on all ranks; then every rank computes its
    part of the loss from its rows, and reaches the others' through `Slots`. With several
    micro-batches each is embedded twice, first without a graph (Gao et al., arXiv:2101.06983).
    """

    combined_parts: tuple[str, ...] = ()
    """Beginnings of the names of parameters that `combine` alone uses: with several micro-batches
    their gradients are complete before the last backward pass."""

    @abstractmethod
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return the rows of a micro-batch that carry gradients: float32, samples first."""

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the rows of a micro-batch that need no graph, such as a teacher's."""
        return {}

    @abstractmethod
    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Compute this rank's part of the loss of a step.

        The loss of the step is the sum of `Term.total` over the ranks, divided by the sum of
        `Term.targets`. A loss that is equal on all ranks is returned by each with targets 1.

        Args:
            rows: What `embed` returned for all micro-batches of this rank, one after the other.
            targets: The same of `targets`.
            slots: Which rows of the step these are; it gathers and sums over the ranks.
        """

    @final  # type: ignore[misc]
    def forward(self, batch: Batch) -> LossOutput:
        """Compute the loss of a step of one micro-batch on one rank."""
        return self.combine(self.embed(batch), self.targets(batch), alone(len(batch["index"])))


@runtime_checkable
class Tallies(Protocol):
    """A module that counts what passes through it in training, such as batch normalisation.

    The executor opens the tally for the first pass of each sample and closes it for passes that
    are repeated, sums what was counted over the ranks, and applies it once after the step.
    """

    is_tallying: bool
    keeps_tally: bool
    """Whether its tally is applied; a teacher's statistics follow its student's instead."""

    def set_groups(self, group: int | None, reduce: Callable[[Tensor], Tensor] | None) -> None:
        """Say which samples share statistics in training.

        Args:
            group: Number of consecutive samples of a micro-batch; None for all of them.
            reduce: Sums over the ranks whose micro-batches together are one group; None where
                groups lie within a rank.
        """
        ...

    def take_tally(self) -> Tensor:
        """Return what was counted since the last call, and forget it; the shape never changes."""
        ...

    def apply_tally(self, sums: Tensor) -> None:
        """Update running statistics with what was counted over the whole step and all ranks."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """An objective whose encoder can be evaluated on images."""

    def features(self, images: Tensor) -> Tensor:
        """Return one vector per image.

        Args:
            images: Normalised images, float (batch, channels, height, width).

        Returns:
            Float (batch, width).
        """
        ...
