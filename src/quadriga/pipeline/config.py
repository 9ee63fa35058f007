"""The config of the pipelined executor, which spreads a model over stages on several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, final

from pydantic import Field

from quadriga.config.base import NamedFile, load
from quadriga.contracts.executor import Executor, ExecutorConfig, Share, StepConfig
from quadriga.contracts.objective import Objective
from quadriga.contracts.step import StepPlan
from quadriga.distributed.environment import DistEnv

OWN = ("sequential", "gpipe", "1f1b", "2bw")
"""Schedules that this package implements; the others come from torch."""


@final
class PipelineConfig(ExecutorConfig):
    """How a model is cut into stages that lie on different ranks.

    `train.accumulate` is the number of micro-batches per step.
    """

    readers: ClassVar[tuple[str, str]] = ("copy", "copies")
    is_cut: ClassVar[bool] = True

    schedule: Literal[
        "sequential",
        "gpipe",
        "1f1b",
        "2bw",
        "torch_gpipe",
        "torch_1f1b",
        "interleaved",
        "zero_bubble",
        "zbv",
        "dualpipev",
    ] = "1f1b"
    """Ours: sequential, gpipe, 1f1b, and 2bw (PipeDream-2BW: no flush, gradients one step late).
    torch's: the others, with `stages_per_rank` stages on each rank."""
    stages: int = Field(1, ge=1)
    """Ranks that hold one replica of the model; the other ranks hold further replicas."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; none for an even split."""
    stages_per_rank: int = Field(1, ge=1)
    """Stages on each rank, for torch's interleaved schedules."""
    conf: NamedFile[Path | None] = None
    """A ``conf.json`` that maps modules to stages and stages to ranks; it replaces `stages` and
    `depths`."""
    deferred_update: bool = True
    """Whether 2bw reduces, clips and steps while the next micro-batches run, or before them."""
    flushed_steps: int = Field(0, ge=0)
    """Steps at the start that 2bw makes without delay, with a flush after each."""
    error_feedback: float = Field(0.0, ge=0)
    """Strength of 2bw's correction of the delay: with u(t) the optimizer's update,
    ``W -= u(t) + c * (u(t) - u(t-1))``; 0 for none."""

    def decisive(self) -> dict[str, Any]:
        """Return the fields that change the result: those of 2bw's delay; the cut does not."""
        if self.schedule != "2bw":
            return {}
        return {"flushed_steps": self.flushed_steps, "error_feedback": self.error_feedback}

    def check(self, config: StepConfig, objective: Objective, world_size: int) -> None:
        """Check the method, the stages and the schedule; see `ExecutorConfig.check`."""
        load("quadriga.pipeline.runtime.checks:check_pipeline")(self, config, objective, world_size)

    def share(self, rank: int, world_size: int) -> Share:
        """Return the share of a rank's replica; the rank of the first stage is its leader."""
        share: Share = load("quadriga.pipeline.topology:share_of")(self, rank, world_size)
        return share

    def describe(self, config: StepConfig, objective: Objective, env: DistEnv) -> str | None:
        """Return a line that describes the cut: schedule, replicas, stages, micro-batches."""
        accumulate, size = config.train.accumulate, env.world_size
        line: str = load("quadriga.pipeline.topology:describe")(self, objective, accumulate, size)
        return line

    def memory_rows(
        self,
        config: StepConfig,
        objective: Objective,
        cost: Any,
        world_size: int,
        local_world_size: int,
    ) -> list[tuple[str, str]]:
        """Return (what, value) rows for parameters and memory; activations need the planner."""
        rows: list[tuple[str, str]] = load("quadriga.pipeline.topology:memory_rows")(
            self, objective, config.train.accumulate, world_size
        )
        return rows

    def build(
        self, objective: Objective, config: StepConfig, plan: StepPlan, env: DistEnv, **options: Any
    ) -> Executor:
        """Make the executor of the schedule."""
        # Importing torch's schedules also imports its compiler: half a second per process.
        own, torchs = "executor:PipelineExecutor", "torch_executor:TorchScheduleExecutor"
        make = load(f"quadriga.pipeline.runtime.{own if self.schedule in OWN else torchs}")
        made: Executor = make(objective, config, plan, env, **options)
        return made


def pipeline_of(config: StepConfig) -> PipelineConfig:
    """Return the executor config of a pipelined run."""
    assert isinstance(config.executor, PipelineConfig)
    return config.executor
