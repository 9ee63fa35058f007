"""From a config to its executor."""

from __future__ import annotations

from typing import Any

from quadriga.contracts import Executor, Objective
from quadriga.distributed.environment import DistEnv
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.data_parallel import DataParallelExecutor
from quadriga.errors import UserError
from quadriga.pipeline.runtime.executor import PipelineExecutor
from quadriga.pipeline.schedules import SCHEDULES, make_schedule
from quadriga.pipeline.topology import replicas_of

# torch's schedules are imported where they are used: they bring its compiler along, half a second
# of every process.


def make_executor(
    objective: Objective, config: RunConfig, plan: RunPlan, env: DistEnv, **options: Any
) -> Executor:
    """Make the executor that ``pipeline.schedule`` names; every rank calls it.

    Args:
        objective: The objective, as the executor wants it.
        config: The run.
        plan: Its numbers.
        env: This process among the run's.
        **options: Those of `DataParallelExecutor`.
    """
    if config.pipeline.schedule == "none":
        return DataParallelExecutor(objective, config, plan, env, **options)
    if config.pipeline.schedule in SCHEDULES:
        return PipelineExecutor(objective, config, plan, env, **options)
    from quadriga.pipeline.runtime.torch_executor import TorchScheduleExecutor

    return TorchScheduleExecutor(objective, config, plan, env, **options)


def check_schedule(config: RunConfig, world_size: int) -> None:
    """Check the schedule against the stages and micro-batches, before any process starts.

    Raises:
        UserError: It cannot run; the same on every rank.
    """
    pipeline = config.pipeline
    stages = world_size // replicas_of(config, world_size)
    if pipeline.schedule in SCHEDULES:
        if pipeline.stages_per_rank != 1:
            raise UserError(
                f"pipeline.stages_per_rank must be 1 for pipeline.schedule={pipeline.schedule}, "
                f"but is {pipeline.stages_per_rank}; use interleaved for several"
            )
        make_schedule(pipeline.schedule).check(stages, config.train.accumulate)
    elif pipeline.schedule != "none":
        from quadriga.pipeline.runtime.torch_executor import check_torch_schedule

        check_torch_schedule(config, stages)
