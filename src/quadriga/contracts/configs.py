"""Abstract bases (`Choice`) of the configs that have several kinds, one base per package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from quadriga.config.base import Choice, Later
from quadriga.contracts.data import Dataset, Split, TaskBlocks, Transform
from quadriga.contracts.evaluation import Evaluator
from quadriga.contracts.objective import Batch, Objective, Progress
from quadriga.contracts.step import StepPlan
from quadriga.contracts.weights import FrozenSource, WeightSource


class ModelConfig(Choice, ABC):
    """An architecture. Its kinds are the files of `quadriga.models`."""

    room: ClassVar[str] = "quadriga.models"

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the module on the current default device, with the initial values of seed 0.

        On the meta device it has names, shapes and dtypes only; see `with_initial_values`.
        """


class ObjectiveConfig(Choice, ABC):
    """A method. Its kinds are the files of `quadriga.methods`."""

    room: ClassVar[str] = "quadriga.methods"

    @abstractmethod
    def build(self, model: ModelConfig) -> Objective:
        """Make the objective on the current default device, with the initial values of seed 0.

        On the meta device it has names, shapes and dtypes only; see `with_initial_values`.

        Raises:
            UserError: `model` is not of a kind that this method trains.
        """

    def check(self, model: ModelConfig, dataset: Dataset | None, views: ViewsConfig) -> None:
        """Check that the method can train the model on samples of these views.

        Args:
            model: The architecture.
            dataset: The training data; None where it is not available.
            views: How its records become samples.

        Raises:
            UserError: The method cannot train this model on these samples.
        """
        return None

    def frozen_sources(self) -> Sequence[FrozenSource]:
        """Return the encoders that are filled from elsewhere at step 0 and never trained."""
        return ()

    def by_task(self, model: ModelConfig) -> Mapping[str, tuple[ObjectiveConfig, ModelConfig]]:
        """Return task -> (method, model) of a mixture; empty for any other method.

        Args:
            model: The run's model, for tasks without one of their own.
        """
        return {}


class ModularConfig(Choice, ABC):
    """How an objective is assembled from parts. Its kinds are the files of `quadriga.modular`.

    A fresh start reads `sources` and passes them to `fill`; a resumed run reads its checkpoint
    only.
    """

    room: ClassVar[str] = "quadriga.modular"

    @abstractmethod
    def build(self, objective: ObjectiveConfig, model: ModelConfig) -> Objective:
        """Make the objective on the current default device, as `ObjectiveConfig.build` does.

        Args:
            objective: The method.
            model: The whole target model.

        Raises:
            UserError: The parts do not add up to the model.
        """

    @abstractmethod
    def sources(self) -> tuple[tuple[str, str], ...]:
        """Return (config path, path) of each run, checkpoint or file that holds a part."""

    def check_sources(
        self,
        objective: ObjectiveConfig,
        model: ModelConfig,
        runs: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Check the sources by their configs alone, before they are trained.

        Args:
            objective: The method.
            model: The whole target model.
            runs: For each of `sources` the values of the run's config; None where it is unknown.

        Raises:
            UserError: The weights that these runs will produce do not fit the model.
        """

    @abstractmethod
    def fill(
        self,
        built: Objective,
        objective: ObjectiveConfig,
        model: ModelConfig,
        sources: Sequence[WeightSource],
    ) -> str:
        """Copy the sources' weights into an initialised objective that `build` made.

        Args:
            built: The objective, changed in place; unusable after an error.
            objective: The method.
            model: The whole target model.
            sources: The weights at `self.sources()`, in that order.

        Returns:
            One line that names the source of each part.

        Raises:
            UserError: A part is missing, unknown, duplicated or of another shape.
        """


class DatasetConfig(Choice, ABC):
    """A source of records. Its kinds are listed in `quadriga.data.DATASETS`."""

    room: ClassVar[str] = "quadriga.data"
    table: ClassVar[str] = "DATASETS"

    @abstractmethod
    def build(self, split: Split) -> Dataset:
        """Open one split.

        Raises:
            UserError: The split is missing or empty.
        """

    def kept_files(self) -> Mapping[str, Path]:
        """Return the small files without which a trained model is of no use: field -> file.

        A run keeps copies of them.

        Raises:
            UserError: They cannot be found.
        """
        return {}

    def by_task(self) -> Mapping[str, DatasetConfig]:
        """Return task -> data of a mixture; empty for any other data."""
        return {}

    def task_blocks(self) -> TaskBlocks | None:
        """Return how a mixture divides its steps into task blocks; None for any other data."""
        return None


class ViewsConfig(Choice, ABC):
    """How records become samples. Its kinds are listed in `quadriga.data.VIEWS`."""

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
            plan: The plan of the steps that train on it; None where nothing is trained.

        Raises:
            UserError: A record cannot become a sample.
        """
        return None

    def by_task(self) -> Mapping[str, ViewsConfig]:
        """Return task -> views of a mixture; empty for any other views."""
        return {}


class EvaluatorConfig(Choice, ABC):
    """An evaluation protocol. Its kinds are the files of `quadriga.evaluation`."""

    room: ClassVar[str] = "quadriga.evaluation"

    every_epochs: float | None = Field(None, gt=0, le=1e6)
    """Epochs between two evaluations by this protocol; none for those of
    ``evaluation.every_epochs``."""

    def values(self) -> dict[str, Any]:
        """Return its kind and all values that decide what it finds."""
        return {name: value for name, value in self.as_dict().items() if name != "every_epochs"}

    @abstractmethod
    def build(self) -> Evaluator:
        """Make the evaluator."""

    def check(self, objective: Objective, example: Batch) -> None:
        """Check that the protocol can evaluate an objective, before there are data.

        Args:
            objective: On the meta device.
            example: Two samples as evaluation sees them, there as well.

        Raises:
            UserError: It cannot.
        """
        return None


class OptimizerConfig(Choice, ABC):
    """An optimizer. Its kinds are the files of `quadriga.optim`."""

    room: ClassVar[str] = "quadriga.optim"

    lr: float = Field(ge=0, le=1e6)
    """Peak learning rate at a batch of `lr_batch` samples."""
    lr_batch: int = Field(256, ge=1, le=2**30)
    """The batch size that `lr` is stated for."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the learning rate scales with the actual batch size."""
    weight_decay: float = Field(ge=0, le=1e6)
    """Weight decay of the parameters that `no_decay` does not exempt."""
    no_decay: tuple[str, ...] = (
        "norm",
        "bias",
        "position",
        "class_token",
        "mask_token",
        "register_token",
    )
    """Parameters whose name contains one of these have no weight decay, nor have scalars and
    vectors."""
    decay_vectors: Later[bool] = False
    """Whether scalars and vectors have weight decay like other parameters."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate per layer, from the head to the input."""
    lr_scales: dict[str, Annotated[float, Field(ge=0)]] = Field({})
    """Part of a parameter's name -> factor of its learning rate; several matches multiply."""
    constant_lr: Later[tuple[str, ...]] = ()
    """Parameters whose name contains one of these keep the peak learning rate, without schedule."""
    clip_norm: float | None = Field(None, gt=0, le=1e6)
    """Global gradient norm to clip to; none for no clipping."""

    @abstractmethod
    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer.

        The executor multiplies the step's learning rate, or the peak where
        ``group["constant_lr"]``, by ``group["lr_scale"]`` and writes the result to
        ``group["lr"]``. A parameter's state holds tensors only and is created by its
        first step, or by `Executor.match_state` before a checkpoint is read into it.

        Raises:
            UserError: A rule names a part or a layer that no parameter belongs to.
        """


class ScheduleConfig(Choice, ABC):
    """A learning-rate schedule. Its kinds are the files of `quadriga.schedules`."""

    room: ClassVar[str] = "quadriga.schedules"

    warmup_epochs: float = Field(0.0, ge=0, le=1e6)
    """Length of the warm-up in epochs."""
    warmup_steps: int = Field(0, ge=0, le=2**30)
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
        """Return the multiplier of the peak learning rate at a step; a pure function."""
