"""Build a run's objective, with memory or on the meta device, and its loader."""

from __future__ import annotations

from collections.abc import Callable

import torch

from quadriga import randomness
from quadriga.contracts import Dataset, Objective
from quadriga.contracts.objective import allocate
from quadriga.data.reading.loader import Loader, OnRead, Warn
from quadriga.data.reading.stream import PlainStream, SampleStream, TaskStream
from quadriga.distributed.environment import DistEnv
from quadriga.engine.run_config import LoaderConfig, RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.tasks import errors_of, examples

TRIED_WEIGHTS, TRIED_PRODUCTS = 2 * 10**7, 2 * 10**11
"""Most weights, and most products of them with the values of two samples, of an objective that is
tried on the CPU: at most 80 MB and about a second."""

Fill = Callable[[Objective], None]
"""Loads weights from other sources into an initialised objective; every rank calls it."""

EXACT = LoaderConfig(workers=0, prefetch=1, max_unreadable_fraction=0.0)
"""Reads in the calling process and tolerates no unreadable sample."""


def build_on_meta(config: RunConfig) -> Objective:
    """Make the objective on the meta device, with names, shapes and dtypes but no memory.

    Raises:
        UserError: The method does not train this kind of model.
    """
    return build_on(config, torch.device("meta"))


def build_on(config: RunConfig, device: torch.device) -> Objective:
    """Make the objective on a device, with the initial values of seed 0; on meta without values.

    Raises:
        UserError: The method does not train this kind of model.
    """
    with device:
        if config.modular is not None:
            return config.modular.build(config.objective, config.model)
        return config.objective.build(config.model)


def device_of(objective: Objective) -> torch.device:
    """Return the device of an objective, all of whose tensors are on one."""
    return next(objective.parameters()).device


def build_objective(config: RunConfig, device: torch.device, seed: int) -> Objective:
    """Make the objective on `device` and initialise all its values from `seed`.

    Raises:
        UserError: The method does not train this kind of model.
    """
    objective = build_on_meta(config)
    give_memory(objective, device, seed)
    return objective


def give_memory(objective: Objective, device: torch.device, seed: int) -> None:
    """Allocate and initialise an objective that is on the meta device; each rank its own shards.

    Args:
        objective: Changed in place; its parameters may be sharded.
        device: Where to allocate it.
        seed: The seed of its values.
    """
    allocate(objective, device)
    objective.initialise_all(seed)


def build_to_try(config: RunConfig) -> Objective:
    """Make the objective where two samples can be tried on it: a small one on the CPU.

    A large one is on the meta device, whose first operation imports sympy and ``torch._dynamo``;
    this takes as long as the whole first step of a small model.

    Raises:
        UserError: The method does not train this kind of model, or the views cannot be made.
    """
    objective, cpu = build_on_meta(config), torch.device("cpu")
    weights = sum(parameter.numel() for parameter in objective.parameters())
    if weights <= TRIED_WEIGHTS:
        batches = [batch for batch, _ in examples(config, cpu, samples=2)]
        values = max(sum(value.numel() for value in batch.values()) for batch in batches)
        if weights * values <= TRIED_PRODUCTS:
            give_memory(objective, cpu, 0)
    return objective


def check_shapes(config: RunConfig, objective: Objective | None = None) -> None:
    """Run two samples of each task through the objective; this needs little memory and no data.

    Two samples, because batch normalisation over one position per sample needs more than one value.

    Args:
        config: The run.
        objective: What `build_to_try` made of it, whose running statistics change.

    Raises:
        UserError: The views and the model do not fit each other.
    """
    objective = build_to_try(config) if objective is None else objective
    for example, _ in examples(config, device_of(objective), samples=2):
        with (
            errors_of(example.task, config),
            randomness.micro_batch(config.seed, 0, 0, 0),
            torch.no_grad(),
        ):
            objective(example)


def make_stream(config: RunConfig, plan: RunPlan) -> SampleStream:
    """Return the stream that assigns samples to the run's steps.

    For a mixture the plan must come from `RunPlan.of_data`.
    """
    if plan.draws is not None:
        return TaskStream(config.seed, plan.task_sizes, plan.draws, plan.world_size)
    return PlainStream(
        config.seed,
        plan.dataset_size,
        plan.batch_size,
        plan.world_size,
        plan.accumulate,
        config.train.repeats,
    )


def build_loader(
    config: RunConfig,
    dataset: Dataset,
    plan: RunPlan,
    env: DistEnv,
    settings: LoaderConfig,
    warn: Warn | None = None,
    on_read: OnRead | None = None,
) -> Loader:
    """Make the loader of a run's training micro-batches; its workers start at the first use.

    Args:
        config: The run.
        dataset: Its training data.
        plan: The plan of its steps.
        env: The rank that reads its share of the samples.
        settings: How it reads.
        warn: Called for unreadable samples; see `Loader`.
        on_read: Called for each micro-batch; see `Loader`.
    """
    return Loader(
        dataset,
        config.views.build("train"),
        make_stream(config, plan),
        share=config.executor.share(env.rank, env.world_size),
        device=env.device,
        workers=settings.workers,
        prefetch=settings.prefetch,
        max_unreadable_fraction=settings.max_unreadable_fraction,
        warn=warn,
        on_read=on_read,
    )
