"""The configs that come in kinds: one abstract base per room, one file per kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import nn

from quadriga.config import Choice
from quadriga.contracts.data import Dataset, Split, Transform
from quadriga.contracts.evaluation import Evaluator
from quadriga.contracts.training import Objective, Progress


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


class DatasetConfig(Choice, ABC):
    """Where records come from. Its kinds are the files of `quadriga.data`."""

    room: ClassVar[str] = "quadriga.data"

    @abstractmethod
    def build(self, split: Split) -> Dataset:
        """Open one split.

        Raises:
            UserError: It is missing or empty.
        """


class ViewsConfig(Choice, ABC):
    """How records become samples. Its kinds are the files of `quadriga.data`."""

    room: ClassVar[str] = "quadriga.data"

    @abstractmethod
    def build(self, split: Split) -> Transform:
        """Make the random transform of training, or the deterministic one of evaluation."""


class EvaluatorConfig(Choice, ABC):
    """A protocol of evaluation. Its kinds are the files of `quadriga.evaluation`."""

    room: ClassVar[str] = "quadriga.evaluation"

    @abstractmethod
    def build(self) -> Evaluator:
        """Make the evaluator."""


class OptimizerConfig(Choice, ABC):
    """An optimizer. Its kinds are the files of `quadriga.optim`."""

    room: ClassVar[str] = "quadriga.optim"

    lr: float
    lr_batch: int
    lr_scaling: Literal["linear", "sqrt", "none"]
    clip_norm: float | None

    @abstractmethod
    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer; ``group["lr_scale"]`` multiplies the step's learning rate."""


class ScheduleConfig(Choice, ABC):
    """A learning-rate schedule. Its kinds are the files of `quadriga.optim.schedules`."""

    room: ClassVar[str] = "quadriga.optim.schedules"

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate at a step: a pure function."""
