"""`RunConfig`: everything that decides a run, as values."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, model_validator

from quadriga.config import Config
from quadriga.contracts import (
    DatasetConfig,
    EvaluatorConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    ViewsConfig,
)


class TrainConfig(Config):
    """How long, with which batch and where."""

    epochs: float | None = Field(None, gt=0)
    """Length of the run in epochs; either this or `steps`."""
    steps: int | None = Field(None, ge=1)
    """Length of the run in optimizer steps."""
    batch_size: int = Field(ge=1)
    """Samples of one optimizer step, over all ranks and micro-batches."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per optimizer step on each rank; more of them need less memory."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    ranks: int = Field(1, ge=1)
    """Processes to start on this machine, when no launcher has started them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products. Weights, gradients and optimizer state are float32 always."""
    dataset_size: int | None = Field(None, ge=1)
    """Samples per epoch that the recipe was written for: the dry run counts with it when the
    data is not at hand. Training always counts the real samples."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs or steps must be set, one of the two, but epochs is {self.epochs} "
                f"and steps is {self.steps}; set one of them to none"
            )
        return self


class LoaderConfig(Config):
    """How samples are read. Nothing here changes what is read."""

    workers: int = Field(2, ge=0)
    """Worker processes per rank; 0 reads in the training process."""
    prefetch: int = Field(4, ge=1)
    """Micro-batches that each worker reads ahead."""
    max_unreadable_fraction: float = Field(0.01, ge=0, le=1)
    """The run stops when a larger share of the samples cannot be read."""


class LogConfig(Config):
    """What is written down while training."""

    every_steps: int = Field(20, ge=1)
    """Optimizer steps between two lines of metrics.jsonl."""
    tensorboard: bool = True
    """Whether to write TensorBoard event files."""


class CheckpointConfig(Config):
    """When the state is saved."""

    every_steps: int | None = Field(None, ge=1)
    """Optimizer steps between two checkpoints; either this or `every_epochs`, or neither."""
    every_epochs: float | None = Field(None, gt=0)
    """Epochs between two checkpoints."""
    keep: int = Field(3, ge=1)
    """How many of the newest checkpoints stay."""

    @model_validator(mode="after")
    def _one_unit(self) -> CheckpointConfig:
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError(
                f"every_steps must be none when every_epochs is set ({self.every_epochs}), "
                f"but is {self.every_steps}"
            )
        return self


class EvaluationConfig(Config):
    """Which protocols judge the model."""

    protocols: tuple[EvaluatorConfig, ...] = ()
    """The protocols, run in order at the end of training."""
    every_epochs: float | None = Field(None, gt=0)
    """Epochs between two evaluations during training; none for the end only."""
    train_samples: int | None = Field(None, ge=1)
    """Evaluate with a fixed part of the training images of this size; none for all of them."""
    test_samples: int | None = Field(None, ge=1)
    """Evaluate on a fixed part of the test images of this size; none for all of them."""
    workers: int = Field(1, ge=0)
    """Worker processes that read the evaluation data."""


class RunConfig(Config):
    """One run: the model, the method, the data, the optimizer and how they are driven."""

    name: str
    """Name of the recipe; also the default work directory, ``runs/NAME``."""
    seed: int = Field(0, ge=0)
    """Every random draw of the run is folded from this."""
    model: ModelConfig
    """The architecture."""
    objective: ObjectiveConfig
    """The method."""
    data: DatasetConfig
    """Where records come from."""
    views: ViewsConfig
    """How records become samples."""
    optim: OptimizerConfig
    """The optimizer."""
    schedule: ScheduleConfig
    """The learning rate over time."""
    train: TrainConfig
    """How long, with which batch and where."""
    loader: LoaderConfig = LoaderConfig()
    """How samples are read."""
    log: LogConfig = LogConfig()
    """What is written down."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Which protocols judge the model."""


NEUTRAL = (
    "name",
    "train.accumulate",
    "train.device",
    "train.ranks",
    "train.dataset_size",
    "data.root",
    "data.files",
    "data.test_files",
    "loader",
    "log",
    "checkpoint",
    "evaluation",
)
"""Paths that may differ between the two halves of a resumed run: they do not change what it
computes (`train.accumulate` only the order of a sum). The data may move: its size is hashed."""

Identity = dict[str, Any]


def identity(config: RunConfig) -> Identity:
    """Return the leaves that decide what a run computes."""
    return {
        path: value
        for path, value in config.leaves()
        if not any(path == name or path.startswith(f"{name}.") for name in NEUTRAL)
    }


def config_hash(config: RunConfig, dataset_size: int) -> str:
    """Return the SHA-256 of `identity` and the data's size: equal for two halves of one run."""
    text = json.dumps([identity(config), dataset_size], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
