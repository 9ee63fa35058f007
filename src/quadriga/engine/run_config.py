"""`RunConfig`: everything that decides a run, as values."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from quadriga.config.base import Config, within
from quadriga.contracts import (
    DatasetConfig,
    EvaluatorConfig,
    ModelConfig,
    ModularConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    ViewsConfig,
)
from quadriga.contracts.logging import LoggerConfig
from quadriga.engine.modular_files_config import ModularFilesConfig
from quadriga.engine.stage_files_config import StageFilesConfig
from quadriga.loggers.tensorboard import TensorboardConfig
from quadriga.pipeline.config import PipelineConfig


class HealthConfig(Config):
    """What happens when training goes wrong."""

    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """What follows a loss or gradient that is not finite: the run stops before the update; the
    update is left out; or the run goes back to the last checkpoint, and if it happens again,
    leaves out the updates from there to the bad step."""
    max_bad_steps: int = Field(10, ge=1)
    """The run stops after so many bad steps without `window` good ones between."""
    window: int = Field(100, ge=8)
    """Steps that a loss is compared with, and after which bad steps are forgotten."""
    spike_factor: float | None = Field(8.0, gt=1)
    """A loss that exceeds the window's median by so many median deviations is reported as a
    spike; none for no reports."""
    hang_factor: float | None = Field(20.0, gt=1)
    """A step that takes so many times the median of the steps before it is a hang; none to wait
    for ever."""
    hang_seconds: float = Field(300.0, gt=0)
    """A step that is shorter than this is never a hang."""


WARMUP = 3
"""Steps before the first profiled one when only a number is given: the first steps of a run
compile, allocate and fill caches."""


def profiled_steps(text: str, start: int) -> range | None:
    """Return the steps, counted from 1 as in metrics.jsonl, that a text means.

    Args:
        text: ``5`` (so many, after `WARMUP`) or ``10-14`` (these, the last one too).
        start: Steps that are already made.

    Returns:
        The steps; None when the text means none.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})(?:-([1-9][0-9]{0,8}))?", text)
    if found is None:
        return None
    if found[2] is None:
        first = start + WARMUP + 1
        return range(first, first + int(found[1]))
    return range(int(found[1]), int(found[2]) + 1) or None


class TrainConfig(Config):
    """How long, with which batch and where."""

    epochs: float | None = Field(None, gt=0)
    """Length of the run in epochs; either this or `steps`."""
    steps: int | None = Field(None, ge=1)
    """Length of the run in optimizer steps."""
    batch_size: int = Field(ge=1)
    """Samples of one optimizer step, over all ranks and micro-batches."""
    repeats: int = Field(1, ge=1)
    """Views of each sample within one step (repeated augmentation): a step has so many times fewer
    different samples. Epochs go on counting views."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per optimizer step on each rank; more of them need less memory."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    ranks: int = Field(1, ge=1)
    """Processes to start on this machine, when no launcher has started them."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the matrix products (`--amp` is bfloat16). Weights, gradients and optimizer state
    are float32 always; float16 scales the loss."""
    compile: bool = False
    """Whether blocks are compiled (torch.compile)."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation checkpointing of the blocks: what the backward pass computes anew. selective:
    all but matrix products and attention; full: everything. It saves memory and costs time."""
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """How several ranks hold the state: all of it on each rank; a shard on each; or shards
    within groups of `shard_ranks` and copies between the groups."""
    shard_ranks: int | None = Field(None, ge=2)
    """Ranks that share one copy of the state under hsdp; none for the ranks of one host."""
    reshard_after_forward: bool = True
    """Whether a block's gathered weights are let go after its forward pass (ZeRO-3), or kept
    until the step's last backward pass (ZeRO-2: fewer gathers, more memory)."""
    dataset_size: int | None = Field(None, ge=1)
    """Samples per epoch that the recipe was written for: the dry run counts with it when the
    data is not at hand. Training always counts the real samples."""

    @model_validator(mode="after")
    def _one_length_and_room_for_repeats(self) -> TrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs or steps must be set, one of the two, but epochs is {self.epochs} "
                f"and steps is {self.steps}; set one of them to none"
            )
        if self.repeats > self.batch_size:
            raise ValueError(
                f"repeats must be at most batch_size ({self.batch_size}), but is {self.repeats}"
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
    loggers: tuple[LoggerConfig, ...] = (TensorboardConfig(),)
    """Where the numbers go beside metrics.jsonl: ``[{"kind": "tensorboard"}, {"kind": "csv"}]``;
    wandb and mlflow are others."""
    samples: bool = False
    """Whether each rank writes down the samples that it reads (``WORK_DIR/samples``): a proof that
    two runs saw the same, and a file that grows with every sample."""
    profile: str | None = None
    """Steps to profile: ``5`` for five steps after three, ``10-14`` for those steps of the run."""

    @model_validator(mode="after")
    def _steps_to_profile(self) -> LogConfig:
        if self.profile is not None and profiled_steps(self.profile, 0) is None:
            raise ValueError(
                "profile must be a number of steps (5) or a range of steps (10-14), "
                f"but is {self.profile!r}"
            )
        return self


class CheckpointConfig(Config):
    """When the state is saved."""

    every_steps: int | None = Field(None, ge=1)
    """Optimizer steps between two checkpoints; either this or `every_epochs`, or neither."""
    every_epochs: float | None = Field(None, gt=0)
    """Epochs between two checkpoints."""
    keep: int = Field(3, ge=1)
    """How many of the newest checkpoints stay."""
    keep_every_steps: int | None = Field(None, ge=1)
    """Checkpoints whose step is a multiple of this stay for ever."""
    keep_best: str | None = None
    """A number (``loss``, ``linear_probe.top1``): the checkpoint where it was best stays."""
    best_is: Literal["highest", "lowest"] = "lowest"
    """Which values of `keep_best` are better."""
    asynchronous: bool = True
    """Whether training goes on while a checkpoint is written: it then stalls only for the copy
    to host memory."""
    on_failure: Literal["stop", "continue"] = "stop"
    """What happens when a checkpoint cannot be written (a full disk). The ones before it stay."""
    stage_files: StageFilesConfig | None = None
    """Files of the weights that are written beside checkpoints, one per pipeline stage."""
    modular_files: ModularFilesConfig | None = None
    """Files in the published modular layout that are written beside checkpoints."""

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
    at_start: bool = False
    """Whether the model is judged before the first step too, such as one that was assembled."""
    weights: Literal["raw", "ema"] = "raw"
    """Which weights are judged: those of the last step, or their moving average (`ema.decay`)."""
    train_samples: int | None = Field(None, ge=1)
    """Evaluate with a fixed part of the training images of this size; none for all of them."""
    test_samples: int | None = Field(None, ge=1)
    """Evaluate on a fixed part of the test images of this size; none for all of them."""
    workers: int = Field(1, ge=0)
    """Worker processes that read the evaluation data."""


class EmaConfig(Config):
    """An exponential moving average of the weights."""

    decay: float | None = Field(None, ge=0, lt=1)
    """``average = decay * average + (1 - decay) * weights`` after each optimizer step; none for
    no average."""
    warmup: bool = False
    """Whether the decay is at most (1 + t) / (10 + t) at step t, so that the average forgets the
    start sooner."""

    @model_validator(mode="after")
    def _warmup_of_something(self) -> EmaConfig:
        if self.warmup and self.decay is None:
            raise ValueError("decay must be set when warmup is true, but is none; such as 0.9999")
        return self


class WarmStartConfig(Config):
    """Weights to start from, instead of random ones."""

    path: str | None = None
    """A file of weights (this project's, timm's or Hugging Face's names), the folder of a published
    model, a checkpoint or a run."""
    weights: Literal["raw", "ema"] = "raw"
    """What of a checkpoint is taken: the weights of its step, or their moving average."""
    strict: bool = True
    """Whether missing and unexpected tensors, and those of other shapes, are an error; otherwise
    they are listed, and what nothing fits keeps its random values."""
    interpolate: bool = True
    """Whether tables of positions are resampled to this model's grid."""


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
    pipeline: PipelineConfig = PipelineConfig()
    """How the model is cut into stages."""
    modular: ModularConfig | None = None
    """How the objective is put together from parts that were trained apart; none for a whole."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """Weights to start from."""
    ema: EmaConfig = EmaConfig()
    """A moving average of the weights."""
    health: HealthConfig = HealthConfig()
    """What happens when training goes wrong."""
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
    "train.compile",
    "train.recompute",
    "train.parallel",
    "train.shard_ranks",
    "train.reshard_after_forward",
    "pipeline",
    "health",
    "loader",
    "log",
    "checkpoint",
    "evaluation",
)
"""Paths that may differ between the two halves of a resumed run: they do not change what it
computes (layout and compilation only the rounding). What a `Location` names may move as well: of
the data the size is hashed, and of a vocabulary what is in it."""

Identity = dict[str, Any]


def identity(config: RunConfig) -> Identity:
    """Return the leaves that decide what a run computes.

    Of a pipeline, that its gradients are late; where it is cut and in which order decides nothing.
    """
    delayed = {}
    if config.pipeline.schedule == "2bw":
        names = ("flushed_steps", "error_feedback")
        delayed = {f"pipeline.{name}": getattr(config.pipeline, name) for name in names}
    neutral = (*NEUTRAL, *config.locations())
    return delayed | {
        path: value
        for path, value in config.leaves()
        if not any(within(path, name) for name in neutral)
    }


def config_hash(config: RunConfig, dataset_size: int, data_identity: str = "") -> str:
    """Return the SHA-256 of `identity` and the data's: equal for two halves of one run."""
    data = [data_identity] if data_identity else []
    text = json.dumps([identity(config), dataset_size, *data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


EXCLUSIVE = (
    ("train.steps", "train.epochs", None),
    ("checkpoint.every_steps", "checkpoint.every_epochs", None),
    ("schedule.warmup_steps", "schedule.warmup_epochs", 0),
)
"""Pairs of which a run has one, and what the other is then."""


def release(values: dict[str, Any]) -> dict[str, Any]:
    """Unset the other unit of a length that is given in one unit: ``train.steps`` and epochs.

    Args:
        values: Overrides of one origin; when they set both units they are left alone, and the
            config says what is wrong.
    """
    released = dict(values)
    for first, second, nothing in EXCLUSIVE:
        for name, other in ((first, second), (second, first)):
            if (
                name in values
                and other not in values
                and str(values[name]).lower() not in ("none", "0")
            ):
                released[other] = nothing
    return released
