"""The configs that come in kinds: one abstract base per room (`Choice`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from quadriga.config.base import Choice
from quadriga.contracts.data import Dataset, Split, TaskBlocks, Transform
from quadriga.contracts.evaluation import Evaluator
from quadriga.contracts.objective import Objective, Progress
from quadriga.contracts.step import StepPlan
from quadriga.contracts.weights import WeightSource


class ModelConfig(Choice, ABC):
    """An architecture. Its kinds are the files of `quadriga.models`."""

    room: ClassVar[str] = "quadriga.models"

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the module on the current default device; its values come from `initialise`."""


class ObjectiveConfig(Choice, ABC):
    """A method. Its kinds are the files of `quadriga.methods`."""

    room: ClassVar[str] = "quadriga.methods"

    @abstractmethod
    def build(self, model: ModelConfig) -> Objective:
        """Make the objective on the current default device; `initialise` gives it values.

        Raises:
            UserError: `model` is not of a kind that this method trains.
        """

    def check(self, model: ModelConfig, dataset: Dataset | None, views: ViewsConfig) -> None:
        """Check that the method can train the model on samples of these views.

        Args:
            model: The architecture.
            dataset: The training data; None where it is not at hand.
            views: How its records become samples.

        Raises:
            UserError: It cannot.
        """
        return None

    def by_task(self, model: ModelConfig) -> Mapping[str, tuple[ObjectiveConfig, ModelConfig]]:
        """Return the method and the model of each task of a mixture; empty outside one.

        Args:
            model: That of the run, for tasks without one of their own.
        """
        return {}


class ModularConfig(Choice, ABC):
    """How an objective is put together from parts. Its kinds are the files of `quadriga.modular`.

    A fresh start reads `sources` and hands them to `fill`; a resumed run has everything in its
    checkpoint and reads none.
    """

    room: ClassVar[str] = "quadriga.modular"

    @abstractmethod
    def build(self, objective: ObjectiveConfig, model: ModelConfig) -> Objective:
        """Make the objective on the current default device, as `ObjectiveConfig.build` does.

        Args:
            objective: The method.
            model: The whole target model.

        Raises:
            UserError: The parts do not make up the model.
        """

    @abstractmethod
    def sources(self) -> tuple[tuple[str, str], ...]:
        """Return (config path, path) of the runs, checkpoints or files that the parts are in."""

    def check_sources(
        self,
        objective: ObjectiveConfig,
        model: ModelConfig,
        runs: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Check what can be known of the sources while they are still to be trained.

        Args:
            objective: The method.
            model: The whole target model.
            runs: For each of `sources` the values of the run's config; None where it is unknown.

        Raises:
            UserError: What these runs will make does not fit.
        """

    @abstractmethod
    def fill(
        self,
        built: Objective,
        objective: ObjectiveConfig,
        model: ModelConfig,
        sources: Sequence[WeightSource],
    ) -> str:
        """Put the sources' weights into an initialised objective that `build` made.

        Args:
            built: Filled whole or, on an error, not to be used.
            objective: The method.
            model: The whole target model.
            sources: What lies at `sources`, in that order.

        Returns:
            One line on what came from where.

        Raises:
            UserError: A part is missing, foreign, of another shape, or there twice.
        """


class DatasetConfig(Choice, ABC):
    """Where records come from. Its kinds stand in the table `quadriga.data.DATASETS`."""

    room: ClassVar[str] = "quadriga.data"
    table: ClassVar[str] = "DATASETS"

    @abstractmethod
    def build(self, split: Split) -> Dataset:
        """Open one split.

        Raises:
            UserError: It is missing or empty.
        """

    def by_task(self) -> Mapping[str, DatasetConfig]:
        """Return the data of each task of a mixture; empty outside one."""
        return {}

    def task_blocks(self) -> TaskBlocks | None:
        """Return how a mixture's steps are made up of its tasks; None outside one."""
        return None


class ViewsConfig(Choice, ABC):
    """How records become samples. Its kinds stand in the table `quadriga.data.VIEWS`."""

    room: ClassVar[str] = "quadriga.data"
    table: ClassVar[str] = "VIEWS"

    @abstractmethod
    def build(self, split: Split) -> Transform:
        """Make the random transform of training, or the deterministic one of evaluation."""

    def check(self, dataset: Dataset, split: Split, plan: StepPlan | None) -> None:
        """Check that the records of a split can become samples.

        Args:
            dataset: The whole split.
            split: Which part of the data it is.
            plan: The numbers of the steps that train on it; None where nothing is trained.

        Raises:
            UserError: They cannot.
        """
        return None

    def by_task(self) -> Mapping[str, ViewsConfig]:
        """Return the views of each task of a mixture; empty outside one."""
        return {}


class EvaluatorConfig(Choice, ABC):
    """A protocol of evaluation. Its kinds are the files of `quadriga.evaluation`."""

    room: ClassVar[str] = "quadriga.evaluation"

    @abstractmethod
    def build(self) -> Evaluator:
        """Make the evaluator."""


class OptimizerConfig(Choice, ABC):
    """An optimizer. Its kinds are the files of `quadriga.optim`."""

    room: ClassVar[str] = "quadriga.optim"

    lr: float = Field(ge=0)
    """Peak learning rate at a batch of `lr_batch` samples."""
    lr_batch: int = Field(256, ge=1)
    """The batch size that `lr` is stated for."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the learning rate follows the actual batch size."""
    weight_decay: float = Field(ge=0)
    """Weight decay of the parameters that decay."""
    no_decay: tuple[str, ...] = (
        "norm",
        "bias",
        "position",
        "class_token",
        "mask_token",
        "register_token",
    )
    """Parameters whose name contains one of these do not decay; nor do scalars and vectors."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """The learning rate shrinks by this factor with each layer from the head to the input."""
    lr_scales: dict[str, Annotated[float, Field(ge=0)]] = Field({})
    """Part of a name -> factor of the learning rate; where several match, their product."""
    clip_norm: float | None = Field(None, gt=0)
    """Global gradient norm to clip to; none for no clipping."""

    @abstractmethod
    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer.

        ``group["lr_scale"]`` multiplies the step's learning rate, which the executor writes to
        ``group["lr"]``. The state of a parameter is tensors only, and made by its first
        step: `Executor.match_state` makes it ahead of one, to be read into.

        Raises:
            UserError: A rule names a part or a layer that no parameter belongs to.
        """


class ScheduleConfig(Choice, ABC):
    """A learning-rate schedule. Its kinds are the files of `quadriga.schedules`."""

    room: ClassVar[str] = "quadriga.schedules"

    warmup_epochs: float = Field(0.0, ge=0)
    """Length of the warm-up in epochs."""
    warmup_steps: int = Field(0, ge=0)
    """Length of the warm-up in optimizer steps, instead of epochs."""
    start_factor: float = Field(1e-4, ge=0, le=1)
    """Multiplier of the peak learning rate at step 0 of a warm-up."""

    @model_validator(mode="after")
    def _one_unit_of_warmup(self) -> Self:
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(
                f"warmup_steps must be 0 when warmup_epochs is set ({self.warmup_epochs}), "
                f"but is {self.warmup_steps}"
            )
        return self

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate at a step: a pure function."""
