"""Checks that a run can be executed as a pipeline."""

from __future__ import annotations

from quadriga.contracts import Objective, Splittable, StepConfig
from quadriga.errors import UserError
from quadriga.pipeline.config import OWN, PipelineConfig
from quadriga.pipeline.schedules import make_schedule
from quadriga.pipeline.topology import make_topology


def check_pipeline(
    pipeline: PipelineConfig, config: StepConfig, objective: Objective, world_size: int
) -> None:
    """Check the method, the stages and the schedule; see `ExecutorConfig.check`.

    Raises:
        UserError: The run cannot be pipelined this way; raised on every rank alike.
    """
    _check_method(config, objective)
    assert isinstance(objective, Splittable)
    topology = make_topology(pipeline, objective.depth, world_size)
    check_schedule(pipeline, config, topology.stages)


def _check_method(config: StepConfig, objective: Objective) -> None:
    train, kind = config.train, config.objective.kind()
    if not isinstance(objective, Splittable):
        what = f"objective.kind={kind}"
        if config.modular is not None:
            what = f"modular.kind={config.modular.kind()}"
        raise UserError(
            f"executor.kind must be data_parallel for {what}, which cannot be cut into stages, "
            "but is pipeline"
        )
    cls = type(objective)
    if (cls.before_step, cls.after_step) != (Objective.before_step, Objective.after_step):
        raise UserError(
            f"executor.kind must be data_parallel for objective.kind={kind}, which has a teacher, "
            "but is pipeline"
        )
    for path, value, allowed in (
        ("train.parallel", train.parallel, ("ddp",)),
        ("train.precision", train.precision, ("float32", "bfloat16", "auto")),
    ):
        if value not in allowed:
            raise UserError(
                f"{path} must be {' or '.join(allowed)} with executor.kind=pipeline, but is {value}"
            )


def check_schedule(pipeline: PipelineConfig, config: StepConfig, stages: int) -> None:
    """Check the schedule against the stages and the micro-batches.

    Raises:
        UserError: The schedule cannot run with these stages and micro-batches.
    """
    if pipeline.schedule not in OWN:
        from quadriga.pipeline.runtime.torch_executor import check_torch_schedule

        check_torch_schedule(pipeline, config.train, stages)
        return
    if pipeline.stages_per_rank != 1:
        raise UserError(
            f"executor.stages_per_rank must be 1 for executor.schedule={pipeline.schedule}, but is "
            f"{pipeline.stages_per_rank}; use interleaved for several"
        )
    make_schedule(pipeline.schedule).check(stages, config.train.accumulate)
