"""Batch, step and learning-rate arithmetic: pure functions of the config and the data's size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from quadriga.contracts import Dataset, OptimizerConfig, Progress, TaskBlocks
from quadriga.contracts.step import StepPlan
from quadriga.data.reading.stream import BlockDraws
from quadriga.engine.run_config import RunConfig, TrainConfig
from quadriga.errors import UserError, nearest_multiples


@dataclass(frozen=True)
class RunPlan(StepPlan):
    """Number and size of a run's steps, and when it saves and evaluates."""

    checkpoint_every: int
    """Optimizer steps between planned checkpoints; `total_steps` for the end only."""
    evaluate_every: int
    """Optimizer steps between evaluations; `total_steps` for the end only."""
    watch_every: Mapping[str, int] = field(default_factory=dict)
    """Kind of a protocol with an interval of its own -> optimizer steps between its evaluations."""
    data_identity: str = ""
    """`Dataset.identity` of the training data."""
    task_sizes: Mapping[str, int] = field(default_factory=dict)
    """Task -> samples of its training data; empty outside a mixture, or without its data."""
    draws: BlockDraws | None = None
    """The tasks of a mixture's steps, whose numbers of samples differ; None outside a mixture."""

    def of_data(self, dataset: Dataset) -> RunPlan:
        """Return the plan with `data_identity` and `task_sizes` of the opened training data."""
        sizes = {task: len(dataset.of_task(task)) for task in dataset.tasks}
        return dataclasses.replace(self, data_identity=dataset.identity, task_sizes=sizes)

    def steps_between(self, protocol: str) -> int:
        """Return the steps between two evaluations by one of the run's protocols."""
        return self.watch_every.get(protocol, self.evaluate_every)

    def is_evaluated(self, step: int, protocol: str | None = None) -> bool:
        """Return whether a protocol of the run evaluates the state after `step`, or any does."""
        own = {self.evaluate_every, *self.watch_every.values()}
        every = own if protocol is None else {self.steps_between(protocol)}
        return step >= self.total_steps or any(step % steps == 0 for steps in every)

    def samples(self, step: int) -> int:
        """Return the number of samples of all steps before `step`."""
        return step * self.batch_size if self.draws is None else self.draws.samples_before(step)

    def progress(self, step: int) -> Progress:
        """Return the progress at a step."""
        counted = None if self.draws is None else self.samples(step)
        return Progress(step, self.total_steps, self.batch_size, self.dataset_size, counted)


@dataclass(frozen=True)
class Segment:
    """Consecutive steps, and whether the run saves and evaluates at their end in any case."""

    steps: range
    save: bool
    evaluate: bool


def scaled_lr(optim: OptimizerConfig, batch_size: int) -> float:
    """Return the peak learning rate at the actual batch size.

    linear: ``lr * batch / lr_batch`` (Goyal et al., arXiv:1706.02677); sqrt:
    ``lr * sqrt(batch / lr_batch)``.
    """
    ratio = batch_size / optim.lr_batch
    factor = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[optim.lr_scaling]
    return optim.lr * factor


def make_plan(config: RunConfig, dataset_size: int, world_size: int) -> RunPlan:
    """Compute a run's plan.

    Args:
        config: The run.
        dataset_size: Samples of the training data.
        world_size: Number of readers of samples.

    Raises:
        UserError: The batch cannot be divided among the ranks and micro-batches, or the run has no
            steps.
    """
    train, blocks = config.train, config.data.task_blocks()
    accumulate = train.accumulate
    if blocks is not None:
        _check_blocks(train, blocks, world_size)
        accumulate = blocks.number // world_size
    parts = world_size * accumulate
    if train.batch_size < parts:
        raise UserError(
            f"train.batch_size must be at least ranks x train.accumulate "
            f"({world_size} x {accumulate} = {parts}), but is {train.batch_size}; raise it, or "
            "lower train.accumulate or the number of ranks"
        )
    per_epoch = dataset_size / train.batch_size
    total = train.steps if train.steps is not None else round((train.epochs or 0) * per_epoch)
    if total < 1:
        raise UserError(
            f"the run must make at least one step, but train.epochs={train.epochs} of "
            f"{dataset_size} samples are {total} steps of {train.batch_size}; lower "
            "train.batch_size or raise train.epochs"
        )
    saving = config.checkpoint
    every = saving.every_steps or _steps(saving.every_epochs, per_epoch, total)
    if saving.seconds is not None and saving.keep_every_steps is not None:
        every = saving.keep_every_steps
    return RunPlan(
        total_steps=total,
        batch_size=train.batch_size,
        accumulate=accumulate,
        world_size=world_size,
        dataset_size=dataset_size,
        lr=scaled_lr(config.optim, train.batch_size),
        checkpoint_every=min(every, total),
        evaluate_every=_steps(config.evaluation.every_epochs, per_epoch, total),
        watch_every={
            protocol.kind(): _steps(protocol.every_epochs, per_epoch, total)
            for protocol in config.evaluation.protocols
            if protocol.every_epochs is not None
        },
        draws=None if blocks is None else BlockDraws(config.seed, blocks),
    )


def _check_blocks(train: TrainConfig, blocks: TaskBlocks, world_size: int) -> None:
    """Check that a mixture's task blocks agree with the rest of the config.

    Raises:
        UserError: The blocks cannot be divided among the ranks, or contradict ``train``.
    """
    if blocks.number % world_size:
        raise UserError(
            f"data.blocks must be a multiple of the ranks ({world_size}), but is {blocks.number}; "
            f"{nearest_multiples(blocks.number, world_size)}, or change the number of ranks"
        )
    for name, value in (("accumulate", train.accumulate), ("repeats", train.repeats)):
        if value != 1:
            raise UserError(
                f"train.{name} must be 1 for a mixture, whose steps data.blocks cuts, but is "
                f"{value}; set it to 1"
            )
    if train.batch_size != blocks.samples:
        raise UserError(
            f"train.batch_size must be {blocks.samples}, the mean number of samples of a mixture's "
            f"{blocks.number} task blocks, but is {train.batch_size}; set it, or change data.blocks"
        )


def _steps(epochs: float | None, per_epoch: float, total: int) -> int:
    return total if epochs is None else min(total, max(1, round(epochs * per_epoch)))


def segments(plan: RunPlan, start: int) -> Iterator[Segment]:
    """Divide the steps from `start` on into segments that end at a checkpoint or an evaluation.

    The ends depend on the plan alone, so a resumed run has those of an uninterrupted run.
    """
    step = start
    while step < plan.total_steps:
        every = (plan.checkpoint_every, plan.evaluate_every, *plan.watch_every.values())
        end = min(*((step // steps + 1) * steps for steps in every), plan.total_steps)
        last = end == plan.total_steps
        yield Segment(
            steps=range(step, end),
            save=last or end % plan.checkpoint_every == 0,
            evaluate=plan.is_evaluated(end),
        )
        step = end


def describe_batch(
    plan: RunPlan, optim: OptimizerConfig, holders: tuple[str, str] = ("rank", "ranks")
) -> str:
    """Return one line with the recipe's and the actual batch size and learning rate.

    Args:
        plan: The plan of the run's steps.
        optim: The recipe's learning rate and its batch size.
        holders: Singular and plural noun for what holds a whole model: ranks, or replicas over
            several ranks.
    """
    micro = math.ceil(plan.batch_size / (plan.world_size * plan.accumulate))
    return (
        f"batch {optim.lr_batch} (recipe) -> {plan.batch_size} "
        f"({_several(plan.world_size, *holders)} x "
        f"{_several(plan.accumulate, 'micro-batch', 'micro-batches')} x {micro}), "
        f"lr {optim.lr:.3g} -> {plan.lr:.3g} ({optim.lr_scaling})"
    )


def _several(number: int, one: str, more: str | None = None) -> str:
    return f"{number} {one if number == 1 else more or f'{one}s'}"
