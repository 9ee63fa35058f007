"""Interface of methods: two forms of the loss of a batch, and the state kept between steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar, final, runtime_checkable

import torch
from torch import Tensor, nn

from quadriga.distributed.slots import Slots, alone

Batch = Mapping[str, Tensor]
"""Tensors of one micro-batch, each with the batch in dimension 0. Every batch has ``index`` (int64,
the samples' indices) and ``key`` (int64, the samples' random keys, folded from seed, epoch and
index). Images are ``image`` (batch, 3, height, width), labels are ``label`` (int64). Several
views of each image are ``crops`` (batch, crops, 3, height, width) instead of ``image``.
Where images are mixed, ``mixed_label`` (int64) is the label of the second image, and ``share``
(float32, 0 to 1) the weight of the sample's own ``label``.

Text is ``ids`` and ``segments`` (int64, (batch, length), padded with 0 at the end) and ``lengths``
(int64, the real tokens of each sample). Tensors that `Transform.batch` adds on the device may have
other dimensions; the host reads counts from their shapes, which does not wait for the device:
``tokens`` (int64, (real,)) are the positions of the real tokens in the flattened ``ids``,
ascending; ``masked`` (int64, (hidden,)) are the positions in ``tokens`` of those to predict, and
``targets`` (int64, (hidden,)) their original ids. ``is_random`` (int64, 0 or 1) says whether the
second segment is a random one."""


@final
class MicroBatch(UserDict[str, Tensor]):
    """A `Batch` on its device that can be rebuilt from the samples that were read."""

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
            tensors: The batch, on the device.
            again: Rebuilds the same micro-batch; by default it returns this one.
            task: Name of the task that the samples belong to; empty outside a mixture.
            share: Fraction of the step's micro-batches, over all ranks, that are of this task.
            others: Name of each other task that a rank computes at the same time -> function
                that makes a micro-batch of it without samples.
        """
        super().__init__(tensors)
        self.task, self.share, self.others = task, share, others or {}
        # An attribute and not a method: a bound method would keep the tensors in memory.
        self.again = again or (lambda: self)

    def in_turn(self) -> Iterator[MicroBatch]:
        """Yield an empty micro-batch of each of `others`, and this one, sorted by task name.

        Modules with collectives need this: all ranks call each module equally often and in the
        same order.
        """
        for task in sorted({self.task, *self.others}):
            yield self if task == self.task else self.others[task]()


Rows = Mapping[str, Tensor]
"""Name -> tensor with the samples of a rank in dimension 0, in the order of their slots."""


class Term(NamedTuple):
    """One part of a loss."""

    total: Tensor
    """Scalar, the sum over targets, or the micro-batch's mean where `targets` is None."""
    targets: Tensor | None
    """Scalar, the number of targets in `total`. None: `total` is a mean, and all micro-batches of
    the step have equal weight."""
    weight: float = 1.0
    """Factor of this part in the loss."""


PREDICTED = "predicted"
"""Name of int64 (samples,): the class that a classifier predicts for each sample."""


class LossOutput(NamedTuple):
    """The loss of one micro-batch, or of one rank's rows of a step.

    The loss of a step is the sum over `terms` of ``weight * total / targets``, with totals and
    targets first summed over the whole step.
    """

    terms: Mapping[str, Term]
    """Name -> part. The only part of an objective is named ``loss``."""
    metrics: Mapping[str, tuple[Tensor, Tensor]]
    """Name -> (sum, count), detached; summed over micro-batches and ranks, then divided."""
    sums: Mapping[str, Tensor] = {}
    """Name -> detached tensor, summed over the step and passed to `Objective.after_step`. The
    names and shapes are those of `Objective.sum_shapes`."""
    rows: Rows = {}  # noqa: RUF012
    """Name -> detached (samples, *any), gathered over the step in slot order and passed to
    `Objective.after_step`. In evaluation mode a classifier returns `PREDICTED`."""

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
        """The only part of the loss."""
        (term,) = self.terms.values()
        return term

    @property
    def value(self) -> Tensor:
        """Scalar, the loss of this output as if it were the whole step."""
        parts = [
            term.weight * (term.total if term.targets is None else term.total / term.targets)
            for term in self.terms.values()
        ]
        return sum(parts[1:], parts[0])


@dataclass(frozen=True)
class Progress:
    """Position in a run: all that schedules, momenta and temperatures may depend on."""

    step: int
    """The current optimizer step, from 0."""
    total_steps: int
    """The number of optimizer steps of the whole run."""
    batch_size: int
    """Samples per optimizer step over all ranks; the mean where steps differ."""
    dataset_size: int
    """Samples of one epoch."""
    counted: int | None = None
    """Samples seen before this step, where steps differ in size; None where all are equal."""

    @property
    def samples(self) -> int:
        """Samples seen before this step."""
        return self.step * self.batch_size if self.counted is None else self.counted

    @property
    def epoch(self) -> float:
        """Epochs finished before this step; epochs follow one another without a gap."""
        return self.samples / self.dataset_size


class Objective(nn.Module, ABC):
    """Model, loss and state (a teacher, a queue) of a method whose loss is a sum over samples.

    Only `after_step` changes buffers, so a skipped step changes none.
    """

    metric_names: tuple[str, ...] = ()
    """Every metric that `forward` may return; a micro-batch may omit some."""
    term_names: tuple[str, ...] = ("loss",)
    """Every part of the loss that `forward` may return. Where there are several, `counts` returns
    their denominators before the step's first backward pass."""
    tokens_per_sample: int | None = None
    """Tokens of a sample's input, including masked ones; None where samples differ. Only the
    throughput in tokens uses it."""
    independent_parts: tuple[str, ...] = ()
    """Name prefixes of the groups of parameters that train independently of one another; the
    gradient of each group is clipped to its own norm. Empty: one norm for all."""
    entry_points: tuple[str, ...] = ()
    """Methods beside `forward` that run modules and are called from outside, such as
    ``features``; where parameters are sharded, each gathers the weights it needs."""
    statistics_group: int | None = None
    """How many consecutive samples of a step share statistics in the encoder's batch
    normalisation; None: no batch normalisation, or statistics of each micro-batch."""
    exchange_group: int | None = None
    """How many consecutive samples of a step must be in one micro-batch because they exchange their
    places, a multiple of `statistics_group`; None: none do."""
    frozen_parts: tuple[str, ...] = ()
    """Name prefixes of parameters that this step does not update: no gradient, weight decay or
    moments. Set in `before_step`."""
    healthy: Mapping[str, tuple[float, float]] = MappingProxyType({})
    """Metric -> its lowest and highest value where the outputs have not collapsed; a run that stays
    outside for ``health.collapse_steps`` is warned of."""

    @abstractmethod
    def forward(self, batch: Batch) -> LossOutput:
        """Compute the loss of one micro-batch on the batch's device."""

    @abstractmethod
    def initialise(self, seed: int) -> None:
        """Fill every parameter and buffer in place, keyed by (seed, its full name).

        The module may come from the meta device with undefined memory, so every value must be
        set. Parameters may be sharded; each rank then fills its own shards.
        """

    def after_initial_weights(self) -> None:
        """Initialise the state that starts as a copy of other weights, such as a teacher.

        Called after `initialise`, and again after initial weights from other sources are loaded.
        """
        return None

    @final
    def initialise_all(self, seed: int) -> None:
        """Fill every value from `seed`, then the state that starts as a copy of others."""
        self.initialise(seed)
        self.after_initial_weights()

    def counts(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return part of the loss -> number of targets, from shapes and masks alone.

        Objectives with several parts, or whose targets are not the samples, override it. A part
        that is a mean has one target in each micro-batch.

        Args:
            batch: One micro-batch.

        Returns:
            Scalar integer tensors on the batch's device.

        Raises:
            TypeError: The objective has several parts and does not override this method.
        """
        if self.term_names != ("loss",):
            raise TypeError(f"{type(self).__name__} has several terms and no counts")
        return {"loss": torch.tensor(len(batch["index"]), device=batch["index"].device)}

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every tensor in `LossOutput.sums`."""
        return {}

    def whole_parameters(self) -> Mapping[str, nn.Parameter] | None:
        """Return the trainable parameters of the whole model that this objective trains a part of.

        Keyed by their names in the whole model, on the meta device; None where the objective is
        the whole. The optimizer's rules (decay, layers, learning rates) refer to the whole model.
        """
        return None

    def name_in_whole(self, name: str) -> str:
        """Return the name in the whole model of one of this objective's trainable parameters."""
        return name

    def before_step(self, progress: Progress) -> None:
        """Set the values that depend on progress (momentum, temperature); once per step."""
        return None

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor] | None:
        """Update the state that follows the weights or the step's samples; once per step.

        Args:
            progress: The progress that `before_step` got.
            sums: `LossOutput.sums` summed over the whole step, the same on every rank.
            rows: `LossOutput.rows` of the whole step, in slot order, the same on every rank.

        Returns:
            Scalar metrics of the whole step that are no mean over samples, if there are any; a
            step that is left out has none.
        """
        return None


class PooledObjective(Objective):
    """A method whose loss couples the samples of a step, or whose head has batch statistics.

    All ranks embed the step's samples in micro-batches; then every rank computes its part of the
    loss from its own rows and gathers rows of other ranks with `Slots`. With several micro-batches
    each is embedded twice, first without a graph (Gao et al., arXiv:2101.06983).
    """

    combined_parts: tuple[str, ...] = ()
    """Name prefixes of parameters that only `combine` uses; with several micro-batches their
    gradients are complete before the last backward pass."""

    @abstractmethod
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return the rows of a micro-batch that carry gradients, float32 (samples, *any)."""

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the rows of a micro-batch that need no graph, such as a teacher's outputs."""
        return {}

    @abstractmethod
    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Compute this rank's part of the loss of a step.

        The loss of the step is the sum of `Term.total` over the ranks, divided by the sum of
        `Term.targets`. If the loss is equal on all ranks, every rank returns it with targets 1.

        Args:
            rows: Outputs of `embed` for all micro-batches of this rank, concatenated.
            targets: Outputs of `targets` for the same micro-batches, concatenated.
            slots: The positions of these rows in the step; gathers and sums over the ranks.
        """

    @final  # type: ignore[misc]
    def forward(self, batch: Batch) -> LossOutput:
        """Compute the loss of a step that consists of one micro-batch on one rank."""
        return self.combine(self.embed(batch), self.targets(batch), alone(len(batch["index"])))


@runtime_checkable
class Tallies(Protocol):
    """A module that accumulates statistics of its input in training, such as batch normalisation.

    The executor enables accumulation for the first forward pass of each sample and disables it for
    repeated passes, sums the statistics over the ranks, and applies the sums once after the step.
    """

    is_tallying: bool
    """Whether the module accumulates statistics now."""
    keeps_tally: bool
    """Whether the sums are applied; a teacher's statistics follow its student's instead."""

    def set_groups(self, group: int | None, reduce: Callable[[Tensor], Tensor] | None) -> None:
        """Set which samples share statistics in training.

        Args:
            group: Number of consecutive samples of a micro-batch; None for all of them.
            reduce: Sums over the ranks whose micro-batches together form one group; None where
                every group is within one rank.
        """
        ...

    def take_tally(self) -> Tensor:
        """Return the statistics since the last call and reset them; the shape never changes."""
        ...

    def apply_tally(self, sums: Tensor) -> None:
        """Update the running statistics with the sums over the whole step and all ranks."""
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


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def with_initial_values(
    make: Callable[[], ModuleT], initialise: Callable[[ModuleT, int], None]
) -> ModuleT:
    """Return a module on the current default device, so that its values are never undefined.

    Args:
        make: Makes the module with undefined values; it is called on the meta device.
        initialise: Fills all values of the module from a seed.

    Returns:
        The module with the initial values of seed 0, or without memory on the meta device.
    """
    device = torch.get_default_device()
    with torch.device("meta"):
        module = make()
    if device.type == "meta":
        return module
    if any(type(parameter) is not nn.Parameter for parameter in module.parameters()):
        return make()  # in torch's FakeTensorMode, where no tensor has values
    allocate(module, device)
    initialise(module, 0)
    return module


def allocate(module: nn.Module, device: torch.device) -> None:
    """Give the parameters and buffers of a module memory with undefined values.

    Unlike ``to_empty`` it does not run ``empty_like`` on the meta device, which imports sympy.

    Args:
        module: Changed in place; its tensors may be sharded.
        device: Where the memory is.
    """

    def made(tensor: Tensor) -> Tensor:
        if hasattr(tensor, "device_mesh"):
            return torch.empty_like(tensor, device=device)
        return torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device
        )

    module._apply(made)  # type: ignore[no-untyped-call]
