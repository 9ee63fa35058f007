"""The tasks of a run: those of a mixture, or the single task of a plain run."""

from __future__ import annotations

import contextlib

import torch

from quadriga.contracts import MicroBatch
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError, keys_at


def task_configs(config: RunConfig) -> dict[str, RunConfig]:
    """Return task -> config of a run with that task only; a plain run has the name ``""``.

    Raises:
        UserError: Data, views and objective do not have the same tasks.
    """
    data, views = config.data.by_task(), config.views.by_task()
    objectives = config.objective.by_task(config.model)
    for other, names in (("views", set(views)), ("objective", set(objectives))):
        if different := sorted(names ^ set(data)):
            raise UserError(
                f"data.tasks and {other}.tasks must have the same names, but {different[0]} is in "
                "one of them only; all of data, views and objective are mixtures, or none is"
            )
    if not data:
        return {"": config}
    return {
        name: config.model_copy(
            update={
                "data": data[name],
                "views": views[name],
                "objective": objectives[name][0],
                "model": objectives[name][1],
            }
        )
        for name in sorted(data)
    }


def errors_of(task: str, config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """Return a context in which errors name a task's keys by their paths in `config`."""
    if not task:
        return contextlib.nullcontext()
    paths = {
        "data": f"data.tasks.{task}.data",
        "views": f"views.tasks.{task}",
        "objective": f"objective.tasks.{task}.objective",
    }
    if config.objective.by_task(config.model)[task][1] is not config.model:
        paths["model"] = f"objective.tasks.{task}.model"
    return keys_at(paths)


def examples(
    config: RunConfig, device: torch.device, samples: int = 1
) -> list[tuple[MicroBatch, float]]:
    """Return (micro-batch, frequency) for each task, with arbitrary values.

    Args:
        config: The run.
        device: The device of the micro-batches.
        samples: Samples of a micro-batch; ignored for a mixture, whose blocks have fixed sizes.

    Returns:
        For a mixture, each task's block and its share of the blocks; for a plain run one
        micro-batch and 1.
    """
    transform, blocks = config.views.build("train"), config.data.task_blocks()
    if blocks is None:
        return [(MicroBatch(transform.example(samples, device)), 1.0)]
    return [
        (MicroBatch(transform.of_task(task).example(size, device), task=task), blocks.shares[task])
        for task, size in blocks.sizes.items()
    ]
