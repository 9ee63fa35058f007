"""What a run would be, without its memory: checks of its start, sizes, work and arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from quadriga.contracts import Dataset, Objective
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import build_on_meta
from quadriga.engine.classes import leaves_it_to_data
from quadriga.engine.evaluate import evaluation_data, make_context
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.profile import check_profile
from quadriga.engine.meters.cost import Cost, activation_bytes, measure
from quadriga.engine.meters.devices import peak_flops, uses_tf32
from quadriga.engine.preflight import ASSUMED, check_start, check_tasks
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan, describe_batch, make_plan
from quadriga.engine.step.blocks import apply_recompute
from quadriga.engine.step.precision import dtype_of
from quadriga.engine.step.state import optimizer_state
from quadriga.engine.tasks import examples, task_configs
from quadriga.errors import MissingData
from quadriga.formatting import bytes_, count, duration, flops
from quadriga.loggers import check_loggers
from quadriga.optim.parts.groups import make_state, partial_optimizer

Row = tuple[str, str]

YARDSTICK = "NVIDIA A100"
"""The device that the time estimate assumes if this machine's device is unknown."""
UTILISATION = 0.4
"""Assumed fraction of the peak FLOP/s that transformers reach when data is not a bottleneck."""
SHORT = 60.0
"""Shorter runs, in seconds, get no time estimate, because start-up dominates them."""


def dry_run(config: RunConfig, world_size: int, local_world_size: int | None = None) -> list[Row]:
    """Build everything on the meta device and compute the run's sizes, operations and length.

    Args:
        config: The run.
        world_size: Number of ranks to assume.
        local_world_size: Ranks per host; by default all of them, at most 8.

    Returns:
        (what, value) rows to print.

    Raises:
        UserError: The run could not start. What it starts from is not looked for, since it may be
            yet to come; data may be missing altogether where the recipe says how much it is.
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
    described: list[Row] = []
    if dataset is not None:
        _, plan = check_start(config, world_size, dataset)
        described = _check_protocols(config, objective, dataset)
    else:
        executor.check(config, objective, world_size)
        plan = make_plan(config, size, executor.share(0, world_size).of)
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
        *described,
        ("length", _length(plan)),
        ("checkpoints", _checkpoints(config, plan, checkpoint_bytes(config, objective))),
        ("batch and lr", describe_batch(plan, config.optim, executor.readers)),
    ]


def _check_protocols(config: RunConfig, objective: Objective, dataset: Dataset) -> list[Row]:
    """Check that the run's protocols can evaluate it; return what was found of its data."""
    rows = [("train data", dataset.description)]
    if config.evaluation.protocols:

        def say(text: str) -> None:
            rows.append(("test data", text.partition(": ")[2]))

        data, console = evaluation_data(config, dataset, say), Console()
        context = make_context(config, objective, data, Path("."), SINGLE, console)
        for protocol in config.evaluation.protocols:
            protocol.build().check(context)
    return [(name, text) for name, text in rows if text]


def _mean(costs: Sequence[tuple[Cost, float]]) -> Cost:
    """Return the expected cost of 1000 task blocks; of a plain run the cost of its micro-batch."""
    if len(costs) == 1:
        return costs[0][0]
    fields = ("samples", "forward_flops", "training_flops", "model_flops")
    sums = {f: round(sum(1000 * n * getattr(cost, f) for cost, n in costs)) for f in fields}
    return dataclasses.replace(costs[0][0], **sums)


def _largest(costs: Sequence[tuple[Cost, float]]) -> Cost:
    return max((cost for cost, _ in costs), key=lambda c: c.activation_bytes + c.batch_bytes)


def _as_executed(config: RunConfig, plain: Cost, micro: int) -> Cost:
    """Return the cost with the activation memory under the run's recomputation and precision.

    Other dtypes than float32 need fake tensors, because the meta device has no autocast. They
    follow the CPU's autocast, whose list of operations differs little from a GPU's; attention is
    the fused one, which keeps no scores.
    """
    train = config.train
    place = torch.device("cpu")
    precision = dtype_of(train, place)
    if train.recompute == "none" and precision == torch.float32:
        return plain
    # Built on meta, since fake tensors cannot be copied, as a teacher is from its student.
    objective = build_on_meta(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective.to_empty(device=place)
        apply_recompute(objective, train.recompute)
        kept = max(
            activation_bytes(objective, example, precision)
            for example, _ in examples(config, place, micro)
        )
    return dataclasses.replace(plain, activation_bytes=kept)


def _dataset(config: RunConfig) -> tuple[Dataset | None, int, str]:
    """Return the training data (None if unavailable), its size, and the origin of the size."""
    for part in task_configs(config).values():
        part.objective.check(part.model, None, part.views)
    try:
        dataset = config.data.build("train")
    except MissingData as error:
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
    """Return the row of the estimated time, on this machine's device if known, else an A100."""
    dtype, name, tf32 = dtype_of(config.train, torch.device("cuda")), YARDSTICK, False
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
    precision = str(dtype).removeprefix("torch.")
    text = f"{duration(seconds)} at {UTILISATION:.0%} of the {precision} peak of {devices}"
    return [("time", f"about {text}")]


def _length(plan: RunPlan) -> str:
    epochs = plan.total_steps * plan.batch_size / plan.dataset_size
    return f"{plan.total_steps} steps = {epochs:.4g} epochs"


def checkpoint_bytes(config: RunConfig, objective: Objective) -> int:
    """Return the bytes of a checkpoint's tensors, but for a few numbers.

    Args:
        config: The run.
        objective: Its objective, on the meta device.
    """
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    optimizer = partial_optimizer(config.optim, trained, trained)
    for group in optimizer.param_groups:
        group["fused"] = False  # torch has no fused step on the meta device
    make_state(optimizer, trained.values())
    copies = config.executor.saved_copies + (config.ema.decay is not None)
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in (
            *objective.state_dict().values(),
            *optimizer_state(optimizer, trained).values(),
            *(p for p in trained.values() for _ in range(copies)),
        )
    )


def _checkpoints(config: RunConfig, plan: RunPlan, size: int) -> str:
    saving = config.checkpoint
    when = []
    if saving.seconds is not None:
        when.append(f"every {duration(saving.seconds)}")
    if plan.checkpoint_every < plan.total_steps:
        when.append(f"every {plan.checkpoint_every} steps")
    kept = saving.keep + (saving.keep_best is not None)
    return (
        f"{bytes_(size)} {' and '.join([*when, 'at the end'])}; at most {kept} are kept"
        f"{' beside those of keep_every_steps' if saving.keep_every_steps else ''}: "
        f"{bytes_(kept * size)}"
    )
