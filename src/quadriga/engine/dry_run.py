"""What a run would be, without its memory or its data: sizes, work and arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from quadriga.contracts import Dataset
from quadriga.engine.build import build_on, build_on_meta
from quadriga.engine.logs.profile import check_profile
from quadriga.engine.meters.cost import Cost, activation_bytes, measure
from quadriga.engine.meters.devices import peak_flops, uses_tf32
from quadriga.engine.preflight import ASSUMED, check_tasks, leaves_it_to_data
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan, describe_batch, make_plan
from quadriga.engine.step.blocks import apply_recompute
from quadriga.engine.tasks import examples, task_configs
from quadriga.errors import UserError
from quadriga.formatting import count, duration, flops
from quadriga.loggers import check_loggers

Row = tuple[str, str]

YARDSTICK = "NVIDIA A100"
"""The device that the time of a run is told for, where this machine has none that is known."""
UTILISATION = 0.4
"""Share of the peak that a run of transformers reaches when nothing holds it up."""
SHORT = 60.0
"""Runs of fewer seconds are spent on starting: no estimate."""


def dry_run(config: RunConfig, world_size: int, local_world_size: int | None = None) -> list[Row]:
    """Build everything on the meta device and work out the run's numbers.

    Args:
        config: The run.
        world_size: Ranks to count with.
        local_world_size: Ranks of one host; by default all of them, 8 at most.

    Returns:
        (what, value) rows to print.

    Raises:
        UserError: The run could not start. What it starts from is not looked for: it may be yet to
            come.
    """
    check_loggers(config.log.loggers)
    dataset, size, origin = _dataset(config)
    assumed = {
        f"objective.tasks.{task}.objective.classes" if task else "objective.classes": ASSUMED
        for task, part in task_configs(config).items()
        if leaves_it_to_data(part)
    }
    if assumed:
        config = config.override(assumed)
        origin = f"{origin}; {ASSUMED} classes assumed"
    objective = build_on_meta(config)
    executor = config.executor
    executor.check(config, objective, world_size)
    plan = make_plan(config, size, executor.share(0, world_size).of)
    if dataset is not None:
        config.views.check(dataset, "train", plan)
    check_profile(config.log, plan.total_steps)
    micro = math.ceil(plan.batch_size / (plan.world_size * plan.accumulate))
    costs = [
        (measure(build_on_meta(config), example), often)
        for example, often in examples(config, torch.device("meta"), micro)
    ]
    cost, largest = _mean(costs), _largest(costs)
    local = local_world_size or min(8, world_size)
    executed = largest if executor.is_cut else _as_executed(config, largest, micro)
    return [
        ("model", f"{config.objective.kind()} of {config.model.kind()}"),
        ("parameters", f"{count(cost.parameters)}, {count(cost.trainable_parameters)} trainable"),
        *_work(cost, plan),
        *_time(config, cost, plan, world_size),
        *executor.memory_rows(config, objective, executed, world_size, local),
        ("data", f"{size} samples per epoch ({origin})"),
        ("length", _length(plan)),
        ("batch and lr", describe_batch(plan, config.optim, executor.readers)),
    ]


def _mean(costs: Sequence[tuple[Cost, float]]) -> Cost:
    """Return the cost of the blocks that the tasks have in the long run, a thousand of them."""
    if len(costs) == 1:
        return costs[0][0]
    fields = ("samples", "forward_flops", "training_flops", "model_flops")
    sums = {f: round(sum(1000 * n * getattr(cost, f) for cost, n in costs)) for f in fields}
    return dataclasses.replace(costs[0][0], **sums)


def _largest(costs: Sequence[tuple[Cost, float]]) -> Cost:
    return max((cost for cost, _ in costs), key=lambda c: c.activation_bytes + c.batch_bytes)


def _as_executed(config: RunConfig, plain: Cost, micro: int) -> Cost:
    """Return the cost with what is kept under the run's recomputation and precision.

    Weights of another type than float32 need fake tensors, since the meta device has no
    autocast; they stand for the CPU's, whose list of operations differs little from a GPU's.
    """
    train = config.train
    if train.recompute == "none" and train.precision == "float32":
        return plain
    place = torch.device("cpu")
    with FakeTensorMode():
        objective = build_on(config, place)
        apply_recompute(objective, train.recompute)
        precision = getattr(torch, train.precision)
        kept = max(
            activation_bytes(objective, example, precision)
            for example, _ in examples(config, place, micro)
        )
    return dataclasses.replace(plain, activation_bytes=kept)


def _dataset(config: RunConfig) -> tuple[Dataset | None, int, str]:
    """Return the training data where it is at hand, its size, and where the size is from."""
    for part in task_configs(config).values():
        part.objective.check(part.model, None, part.views)
    try:
        dataset = config.data.build("train")
    except UserError as error:
        if config.train.dataset_size is None:
            raise
        return None, config.train.dataset_size, f"the recipe's number, since {error}"
    check_tasks(config, dataset)
    return dataset, len(dataset), "counted"


def _work(cost: Cost, plan: RunPlan) -> list[Row]:
    per_sample = cost.training_flops / cost.samples
    return [
        ("forward", f"{flops(cost.forward_flops / cost.samples)} per sample"),
        ("forward and backward", f"{flops(per_sample)} per sample"),
        ("work per step", flops(per_sample * plan.batch_size)),
        ("work of the run", flops(per_sample * plan.batch_size * plan.total_steps)),
    ]


def _time(config: RunConfig, cost: Cost, plan: RunPlan, world_size: int) -> list[Row]:
    """Return how long the run would take, on this machine's device if it is known, or an A100."""
    dtype, name, tf32 = getattr(torch, config.train.precision), YARDSTICK, False
    if config.train.device != "cpu" and torch.cuda.is_available():
        own = torch.cuda.get_device_name()
        if peak_flops(own, dtype) is not None:
            name, tf32 = own, uses_tf32()
    peak = peak_flops(name, dtype, tf32)
    work = cost.model_flops / cost.samples * plan.batch_size * plan.total_steps
    seconds = work / (UTILISATION * world_size * peak) if peak is not None else 0.0
    if seconds < SHORT:
        return []
    devices = f"{world_size} x {name}" if world_size > 1 else f"one {name}"
    text = f"{duration(seconds)} at {UTILISATION:.0%} of the {config.train.precision} peak of "
    return [("time", f"about {text}{devices}")]


def _length(plan: RunPlan) -> str:
    epochs = plan.total_steps * plan.batch_size / plan.dataset_size
    return (
        f"{plan.total_steps} steps = {epochs:.4g} epochs, a checkpoint every "
        f"{plan.checkpoint_every} steps"
    )
