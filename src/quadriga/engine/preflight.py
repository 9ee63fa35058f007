"""Checks of a run before its first step."""

from __future__ import annotations

from quadriga.contracts import Dataset, Objective
from quadriga.data.reading.sampling import deal
from quadriga.engine.build import build_to_try, check_shapes, device_of
from quadriga.engine.classes import check_classes
from quadriga.engine.logs.profile import check_profile
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan, make_plan
from quadriga.engine.step.statistics import check_exchange, ranks_of_group
from quadriga.engine.tasks import errors_of, task_configs
from quadriga.errors import UserError
from quadriga.loggers import check_kinds, check_loggers

ASSUMED = 1000
"""Number of classes that a dry run assumes if the data is not available; that of ImageNet."""


def check_weights(config: RunConfig) -> None:
    """Check that the run has the weights that it evaluates.

    Raises:
        UserError: ``evaluation.weights`` is ema, and the run has no moving average.
    """
    if config.evaluation.weights == "ema" and config.ema.decay is None:
        raise UserError(
            "evaluation.weights=ema needs a moving average, but ema.decay is none; train with "
            "ema.decay set, such as 0.9999, or use evaluation.weights=raw"
        )


def check_start(
    config: RunConfig,
    world_size: int,
    dataset: Dataset | None = None,
    try_shapes: bool = True,
) -> tuple[Dataset, RunPlan]:
    """Run all checks that need no device memory, no process and no work directory.

    Args:
        config: The run.
        world_size: Ranks it is to run on.
        dataset: Its training data, where it is open already.
        try_shapes: Whether the model is tried on samples of the views' shapes.

    Returns:
        The training data and the plan of the run's steps.

    Raises:
        UserError: The run cannot start.
    """
    check_kinds(config.log.loggers)
    check_loggers(config.log.loggers)
    if dataset is None:
        dataset = config.data.build("train")
    check_tasks(config, dataset)
    objective = build_to_try(config)
    check_protocols(config, objective)
    config.executor.check(config, objective, world_size)
    plan = make_plan(config, len(dataset), config.executor.share(0, world_size).of)
    config.views.check(dataset, "train", plan)
    if try_shapes:
        check_shapes(config, objective)
    if (group := objective.statistics_group) is not None:
        ranks_of_group(group, deal(plan.batch_size, plan.world_size, plan.accumulate))
    if (group := objective.exchange_group) is not None:
        check_exchange(group, deal(plan.batch_size, plan.world_size, plan.accumulate))
    _check_independence(config, objective)
    check_weights(config)
    _check_keep_best(config)
    check_profile(config.log, plan.total_steps)
    return dataset, plan.of_data(dataset)


def check_protocols(config: RunConfig, objective: Objective) -> None:
    """Check that the run's protocols can evaluate its objective, before there are data.

    Raises:
        UserError: They do not, the data cannot be read, or a mixture is to be evaluated by a
            protocol.
    """
    protocols = config.evaluation.protocols
    if protocols and config.data.by_task():
        raise UserError(
            "evaluation.protocols must be empty for a mixture, since a protocol evaluates one data "
            f"set, but has {protocols[0].kind()}; set evaluation.protocols=[]"
        )
    if protocols:
        example = config.views.build("test").example(2, device_of(objective))
        for protocol in protocols:
            protocol.check(objective, example)


def check_tasks(config: RunConfig, dataset: Dataset) -> None:
    """Check that the method, the model and the data of each task are compatible.

    Raises:
        UserError: They do not.
    """
    for task, part in task_configs(config).items():
        with errors_of(task, config):
            part.objective.check(part.model, dataset.of_task(task), part.views)
            check_classes(part, dataset.of_task(task))
            dataset.of_task(task).check()


def _check_independence(config: RunConfig, objective: Objective) -> None:
    """Check that independently trained parts do not affect each other.

    Raises:
        UserError: The precision is float16, whose loss scale and skipped steps they would share.
    """
    parts = objective.independent_parts
    if parts and config.train.precision == "float16":
        raise UserError(
            f"train.precision must be float32 or bfloat16 for {len(parts)} modules in one process, "
            "whose steps float16 would leave out together, but is float16; set it, or train each "
            "in a run of its own"
        )


def _check_keep_best(config: RunConfig) -> None:
    """Check that the run has the protocol of ``checkpoint.keep_best``.

    The names of a protocol's or a method's metrics are unknown before its first results.

    Raises:
        UserError: It names a protocol instead of a metric, or a protocol that the run lacks.
    """
    name = config.checkpoint.keep_best
    if name is None:
        return
    protocols = [protocol.kind() for protocol in config.evaluation.protocols]
    if name in protocols:
        raise UserError(f"checkpoint.keep_best must name a number of {name}, such as {name}.top1")
    protocol, dot, _ = name.rpartition(".")
    if dot and protocol not in protocols:
        raise UserError(
            f"checkpoint.keep_best is {name}, but {protocol} is not among evaluation.protocols "
            f"({', '.join(protocols) or 'none'}); add it there, or use another number, such as loss"
        )
