"""What makes optimizer steps, and how a run chooses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

from pydantic import Field
from torch import Tensor

from quadriga.config.base import Choice, Config, construct
from quadriga.contracts.configs import (
    ModelConfig,
    ModularConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from quadriga.contracts.objective import MicroBatch, Objective
from quadriga.contracts.step import EmaConfig, StepPlan, TrainConfig
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.mesh import Ranks


class StepOutput(NamedTuple):
    """What an executor reports of one optimizer step, the same on every rank."""

    step: int
    metrics: Mapping[str, Tensor]
    """Name -> scalar, already divided; ``loss`` is one of them."""
    grad_norm: Tensor
    """Scalar: the global gradient norm before clipping."""
    lr: float
    samples: int
    """Samples of this step over all ranks."""
    seconds: Mapping[str, float]
    """This rank's wall time by phase (`engine.meters.phase_timer`), and ``step`` in all."""
    skipped: bool = False
    """Whether the update was left out: its gradient was not finite, or the run was told to."""
    stop: bool = False
    """Whether a rank was asked to stop (a signal): the run saves and ends after this step."""


class Executor(ABC):
    """How one optimizer step is executed: data-parallel or pipelined."""

    ranks: Ranks | None = None
    """The ranks over which `frozen` may give a sharded objective; None where it is whole."""

    @abstractmethod
    def run(self, batches: Iterator[MicroBatch], steps: range) -> Iterator[StepOutput]:
        """Make the optimizer steps in `steps`, one output each.

        Args:
            batches: This rank's micro-batches on its device, in order; exactly as many are taken
                as `steps` needs.
            steps: Consecutive step numbers. At their end, and after an output with `stop`, which
                is the last one, the executor is quiet: nothing is in flight, and `state_dict` is
                the state after the last step.
        """

    def close(self) -> None:
        """End what runs beside the steps; the executor is not used afterwards."""
        return None

    @abstractmethod
    def frozen(self, weights: str = "raw") -> AbstractContextManager[Objective]:
        """Return a context that gives the objective, to be evaluated; every rank enters it.

        Its parameters may be sharded: every rank then calls its methods equally often.

        Args:
            weights: "raw" for the weights of the last step, "ema" for their moving average.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state under global, layout-free names."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state that `state_dict` returned, on any layout.

        Raises:
            ValueError: The names are not those of this model and optimizer.
        """

    def match_state(self, names: Collection[str]) -> None:
        """Have `state_dict` return, of the state that comes with the first steps, what a
        checkpoint has; every rank calls it.

        Until then an optimizer has no state: a checkpoint of step 0 holds none, nor one does of a
        parameter without a gradient. What was made is to be read into.

        Args:
            names: Those of the checkpoint's tensors.
        """
        return None


class Share(NamedTuple):
    """Which of a step's samples a rank reads."""

    rank: int = 0
    """Which of the readers it is."""
    of: int = 1
    """Number of readers: ranks that read the same samples count once."""
    is_leader: bool = True
    """Whether it speaks for the ranks that read the same samples."""


class ExecutorConfig(Choice, ABC):
    """How a run's steps are executed. Its kinds lie in several rooms."""

    listed: ClassVar[Mapping[str, str]] = {
        "data_parallel": "quadriga.engine.step.data_parallel_config:DataParallelConfig",
        "pipeline": "quadriga.pipeline.config:PipelineConfig",
    }
    readers: ClassVar[tuple[str, str]] = ("rank", "ranks")
    """What reads a share of the samples, in words: one, and several."""
    is_cut: ClassVar[bool] = False
    """Whether the model is cut, so that no rank computes all of it."""

    def decisive(self) -> dict[str, Any]:
        """Return the fields that decide what a run computes, beyond rounding.

        Two halves of one run agree in them; where and in which order something is computed is none
        of them.
        """
        return {}

    @abstractmethod
    def check(self, config: StepConfig, objective: Objective, world_size: int) -> None:
        """Check that steps can be made on so many ranks.

        Args:
            config: The run.
            objective: Its objective, on any device.
            world_size: Number of ranks.

        Raises:
            UserError: They cannot; the same on every rank.
        """

    @abstractmethod
    def share(self, rank: int, world_size: int) -> Share:
        """Return which samples a rank reads.

        Raises:
            UserError: So many ranks cannot be divided.
        """

    @abstractmethod
    def describe(self, config: StepConfig, objective: Objective, env: DistEnv) -> str | None:
        """Return the line that says what each rank holds; None where there is nothing to say."""

    @abstractmethod
    def memory_rows(
        self,
        config: StepConfig,
        objective: Objective,
        cost: Any,
        world_size: int,
        local_world_size: int,
    ) -> list[tuple[str, str]]:
        """Return what a rank holds, worked out without its memory: (what, value) rows.

        Args:
            config: The run.
            objective: Its objective, on the meta device.
            cost: What a micro-batch costs a rank that computes the whole model
                (`quadriga.engine.meters.cost.Cost`).
            world_size: Number of ranks.
            local_world_size: Ranks of one host.
        """

    @abstractmethod
    def build(
        self, objective: Objective, config: StepConfig, plan: StepPlan, env: DistEnv, **options: Any
    ) -> Executor:
        """Make the executor; every rank calls it.

        Args:
            objective: The whole objective, on the meta device: each rank gives memory to its part.
            config: The run.
            plan: The numbers of its steps.
            env: This process among the run's.
            **options: What a session gives to every executor: see `DataParallelExecutor`.

        Raises:
            UserError: The ranks or the parameters are not what the config says.
        """


def _data_parallel() -> ExecutorConfig:
    return construct(ExecutorConfig, {"kind": "data_parallel"})  # type: ignore[type-abstract]


class StepConfig(Config):
    """What decides a run's optimizer steps beside the samples: all that an executor reads."""

    name: str
    """Name of the recipe; also the default work directory, ``runs/NAME``."""
    seed: int = Field(0, ge=0)
    """Every random draw of the run is folded from this."""
    model: ModelConfig
    """The architecture."""
    objective: ObjectiveConfig
    """The method."""
    optim: OptimizerConfig
    """The optimizer."""
    schedule: ScheduleConfig
    """The learning rate over time."""
    train: TrainConfig
    """How long, with which batch and where."""
    executor: ExecutorConfig = Field(default_factory=_data_parallel)
    """How steps are executed: on copies or shards of the model, or on stages of it."""
    modular: ModularConfig | None = None
    """How the objective is put together from parts that were trained apart; none for a whole."""
    ema: EmaConfig = EmaConfig()
    """A moving average of the weights."""
