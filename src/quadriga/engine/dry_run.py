"""What a run would be, without its memory or its data: sizes, work and arithmetic."""

from __future__ import annotations

import math

import torch

from quadriga.engine.arithmetic import RunPlan, describe_batch, make_plan
from quadriga.engine.build import build_on_meta
from quadriga.engine.meters import Cost, measure, memory_estimate
from quadriga.engine.run_config import RunConfig
from quadriga.engine.units import bytes_, count, flops
from quadriga.errors import UserError

Row = tuple[str, str]


def dry_run(config: RunConfig, world_size: int) -> list[Row]:
    """Build everything on the meta device and work out the run's numbers.

    Args:
        config: The run.
        world_size: Ranks to count with.

    Returns:
        (what, value) rows to print.

    Raises:
        UserError: The run could not start; the same errors as when it is started.
    """
    size, origin = _dataset_size(config)
    plan = make_plan(config, size, world_size)
    micro = math.ceil(plan.batch_size / (world_size * plan.accumulate))
    example = config.views.build("train").example(micro, torch.device("meta"))
    cost = measure(build_on_meta(config), example)
    return [
        ("model", f"{config.objective.kind()} of {config.model.kind()}"),
        ("parameters", f"{count(cost.parameters)}, {count(cost.trainable_parameters)} trainable"),
        *_work(cost, plan),
        *_memory(cost),
        ("data", f"{size} samples per epoch ({origin})"),
        ("length", _length(plan)),
        ("batch and lr", describe_batch(plan, config.optim)),
    ]


def _dataset_size(config: RunConfig) -> tuple[int, str]:
    try:
        return len(config.data.build("train")), "counted"
    except UserError as error:
        if config.train.dataset_size is None:
            raise
        return config.train.dataset_size, f"the recipe's number, since {error}"


def _work(cost: Cost, plan: RunPlan) -> list[Row]:
    per_sample = cost.training_flops / cost.samples
    return [
        ("forward", f"{flops(cost.forward_flops / cost.samples)} per sample"),
        ("forward and backward", f"{flops(per_sample)} per sample"),
        ("work per step", flops(per_sample * plan.batch_size)),
        ("work of the run", flops(per_sample * plan.batch_size * plan.total_steps)),
    ]


def _memory(cost: Cost) -> list[Row]:
    estimate = memory_estimate(cost)
    parts = (
        f"parameters {bytes_(estimate.parameters)}, gradients {bytes_(estimate.gradients)}, "
        f"optimizer {bytes_(estimate.optimizer)}, activations {bytes_(estimate.activations)} "
        f"for {cost.samples} samples"
    )
    return [("memory per rank", f"about {bytes_(estimate.total)}: {parts}")]


def _length(plan: RunPlan) -> str:
    epochs = plan.total_steps * plan.batch_size / plan.dataset_size
    return (
        f"{plan.total_steps} steps = {epochs:.4g} epochs, a checkpoint every "
        f"{plan.checkpoint_every} steps"
    )
