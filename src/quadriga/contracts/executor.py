"""Interface of executors, which run the optimizer steps, and of their configs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import PurePath
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field, model_validator
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
    """The result of one optimizer step, the same on every rank except for `seconds`."""

    step: int
    metrics: Mapping[str, Tensor]
    """Name -> scalar, sums already divided by counts; includes ``loss``."""
    grad_norm: Tensor
    """Scalar, the global gradient norm before clipping."""
    lr: float
    samples: int
    """Samples of this step over all ranks."""
    seconds: Mapping[str, float]
    """This rank's wall time in seconds by phase (`engine.meters.phase_timer`); ``step`` is the
    whole step."""
    skipped: bool = False
    """Whether the update was skipped: the loss or gradient was not finite, the step had no targets,
    or a rollback excludes it."""
    stop: bool = False
    """Whether a rank received a stop signal; the run saves and ends after this step."""
    save: bool = False
    """Whether a rank asked for a checkpoint of the state after this step."""


class Executor(ABC):
    """Runs optimizer steps, data-parallel or pipelined."""

    ranks: Ranks | None = None
    """The ranks over which the objective of `frozen` may be sharded; None where it is whole."""

    @abstractmethod
    def run(self, batches: Iterator[MicroBatch], steps: range) -> Iterator[StepOutput]:
        """Run the optimizer steps in `steps` and yield one output for each.

        Args:
            batches: This rank's micro-batches on its device, in order; exactly as many are taken
                as `steps` needs.
            steps: Consecutive step numbers. After the last one, and after an output with `stop`
                or `save`, which is the last output, no work is in flight and `state_dict` returns
                the state after the last step.
        """

    def close(self) -> None:
        """End background work; the executor is not used afterwards."""
        return None

    @abstractmethod
    def frozen(self, weights: str = "raw") -> AbstractContextManager[Objective]:
        """Return a context that yields the objective for evaluation; every rank enters it.

        Where its parameters are sharded, every rank calls its methods equally often.

        Args:
            weights: "raw" for the weights of the last step, "ema" for their moving average.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state under global names that do not depend on the layout of the ranks."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned, on any layout of ranks.

        Raises:
            ValueError: The names are not those of this model and optimizer.
        """

    def match_state(self, names: Collection[str]) -> None:
        """Create the optimizer state that a checkpoint holds, so that it can be read in place.

        Every rank calls it. An optimizer creates the state of a parameter at its first step: a
        checkpoint of step 0 holds none, and no checkpoint holds any of a parameter without a
        gradient. Afterwards `state_dict` has the state that `names` lists.

        Args:
            names: Names of the checkpoint's tensors.
        """
        return None


class Share(NamedTuple):
    """The share of a step's samples that a rank reads."""

    rank: int = 0
    """Position among the readers."""
    of: int = 1
    """Number of readers; ranks that read the same samples count once."""
    is_leader: bool = True
    """Whether this rank is the data leader of the ranks that read the same samples."""


class ExecutorConfig(Choice, ABC):
    """How a run's steps are executed. Its kinds are in several packages."""

    listed: ClassVar[Mapping[str, str]] = {
        "data_parallel": "quadriga.engine.step.data_parallel_config:DataParallelConfig",
        "pipeline": "quadriga.pipeline.config:PipelineConfig",
    }
    readers: ClassVar[tuple[str, str]] = ("rank", "ranks")
    """Singular and plural noun for a reader of samples, for messages."""
    is_cut: ClassVar[bool] = False
    """Whether the model is cut into stages, so that no rank computes all of it."""

    @property
    def saved_copies(self) -> int:
        """Copies of the trainable parameters that a checkpoint holds for the executor itself."""
        return 0

    def decisive(self) -> dict[str, Any]:
        """Return the fields that determine what a run computes, up to rounding.

        A resumed run must agree in them. They exclude where and in which order it computes.
        """
        return {}

    @abstractmethod
    def check(self, config: StepConfig, objective: Objective, world_size: int) -> None:
        """Check that `world_size` ranks can run the steps.

        Args:
            config: The run.
            objective: Its objective, on any device.
            world_size: Number of ranks.

        Raises:
            UserError: They cannot; raised on every rank with the same message.
        """

    @abstractmethod
    def share(self, rank: int, world_size: int) -> Share:
        """Return the share of the samples that a rank reads.

        Raises:
            UserError: `world_size` ranks cannot be divided as the config says.
        """

    @abstractmethod
    def describe(self, config: StepConfig, objective: Objective, env: DistEnv) -> str | None:
        """Return one line on what each rank holds; None where every rank holds everything."""

    @abstractmethod
    def memory_rows(
        self,
        config: StepConfig,
        objective: Objective,
        cost: Any,
        world_size: int,
        local_world_size: int,
    ) -> list[tuple[str, str]]:
        """Return the memory of a rank, computed without allocating it, as (what, value) rows.

        Args:
            config: The run.
            objective: Its objective, on the meta device.
            cost: The cost of a micro-batch on a rank that computes the whole model
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
            objective: The whole objective, on the meta device; each rank allocates its part.
            config: The run.
            plan: The plan of its steps.
            env: This process among the run's.
            **options: The options that a session passes to every executor; see
                `DataParallelExecutor`.

        Raises:
            UserError: The ranks or the parameters do not match the config.
        """


def _data_parallel() -> ExecutorConfig:
    return construct(ExecutorConfig, {"kind": "data_parallel"})  # type: ignore[type-abstract]


class StepConfig(Config):
    """The part of a run's config that an executor reads; the samples are configured elsewhere."""

    name: str
    """Name of the recipe; also the default work directory, ``runs/NAME``: a relative path without
    ``..``."""
    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Seed of every random draw of the run."""
    model: ModelConfig
    """The architecture."""
    objective: ObjectiveConfig
    """The method."""
    optim: OptimizerConfig
    """The optimizer."""
    schedule: ScheduleConfig
    """The learning rate over time."""
    train: TrainConfig
    """Length, batch, device and precision of the training."""
    executor: ExecutorConfig = Field(default_factory=_data_parallel)
    """How steps are executed: on copies or shards of the model, or on stages of it."""
    modular: ModularConfig | None = None
    """How the objective is assembled from independently trained parts; none for a whole model."""
    ema: EmaConfig = EmaConfig()
    """A moving average of the weights."""

    @model_validator(mode="after")
    def _stays_in_runs(self) -> Self:
        parts = PurePath(self.name).parts
        if not parts or PurePath(self.name).is_absolute() or ".." in parts or "\0" in self.name:
            raise ValueError(
                f"name must be that of a folder in runs, such as my_run, but is {self.name!r}; use "
                "--work-dir for another place"
            )
        return self
