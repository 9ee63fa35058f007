"""`RunConfig`: everything that decides a run, as values."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from quadriga.config.base import Config, within
from quadriga.contracts import DatasetConfig, EvaluatorConfig, ViewsConfig
from quadriga.contracts.executor import StepConfig
from quadriga.contracts.logging import LoggerConfig
from quadriga.contracts.step import EmaConfig, TrainConfig
from quadriga.loggers.tensorboard import TensorboardConfig

__all__ = [
    "NEUTRAL",
    "CheckpointConfig",
    "EmaConfig",
    "EvaluationConfig",
    "HealthConfig",
    "Identity",
    "LoaderConfig",
    "LogConfig",
    "RunConfig",
    "TrainConfig",
    "WarmStartConfig",
    "config_hash",
    "identity",
    "profiled_steps",
    "clear_conflicting",
]


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
    """Where the metrics go beside metrics.jsonl: ``[{"kind": "tensorboard"}, {"kind": "csv"}]``;
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

    @model_validator(mode="after")
    def _one_unit(self) -> CheckpointConfig:
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError(
                f"every_steps must be none when every_epochs is set ({self.every_epochs}), "
                f"but is {self.every_steps}"
            )
        return self


class EvaluationConfig(Config):
    """Which protocols evaluate the model."""

    protocols: tuple[EvaluatorConfig, ...] = ()
    """The protocols, run in order at the end of training."""
    every_epochs: float | None = Field(None, gt=0)
    """Epochs between two evaluations during training; none for the end only."""
    at_start: bool = False
    """Whether the model is evaluated before the first step too, such as one that was assembled."""
    weights: Literal["raw", "ema"] = "raw"
    """Which weights are evaluated: those of the last step, or their average (`ema.decay`)."""
    train_samples: int | None = Field(None, ge=1)
    """Evaluate with a fixed part of the training images of this size; none for all of them."""
    test_samples: int | None = Field(None, ge=1)
    """Evaluate on a fixed part of the test images of this size; none for all of them."""
    workers: int = Field(1, ge=0)
    """Worker processes that read the evaluation data."""


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


class RunConfig(StepConfig):
    """One run: what decides its steps, the data, and all that happens around the steps."""

    data: DatasetConfig
    """Where records come from."""
    views: ViewsConfig
    """How records become samples."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """Weights to start from."""
    health: HealthConfig = HealthConfig()
    """What happens when training goes wrong."""
    loader: LoaderConfig = LoaderConfig()
    """How samples are read."""
    log: LogConfig = LogConfig()
    """What is written down."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Which protocols evaluate the model."""

    @classmethod
    def upgraded(cls, values: dict[str, Any], sources: dict[str, str]) -> None:
        """Translate what a revision up to 7f9c01b saved; see `Config.upgraded`.

        It had a group ``pipeline`` instead of the kinds of ``executor``, and said in
        ``checkpoint`` which files of other layouts were written beside checkpoints.
        """
        for name in ("stage_files", "modular_files"):
            values.get("checkpoint", {}).pop(name, None)
        pipeline = values.pop("pipeline", None)
        if pipeline is None:
            return
        of_kind = sources.get("pipeline.schedule", "default")
        if pipeline.get("schedule", "none") == "none":
            values["executor"] = {"kind": "data_parallel"}
        else:
            values["executor"] = {"kind": "pipeline", **pipeline}
        sources["executor.kind"] = of_kind
        for path in [path for path in sources if path.startswith("pipeline.")]:
            sources[path.replace("pipeline", "executor", 1)] = sources.pop(path)


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
    "executor",
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

    Of the executor it is what it says itself, such as that gradients are late.
    """
    decisive = {f"executor.{name}": v for name, v in config.executor.decisive().items()}
    neutral = (*NEUTRAL, *config.locations(), *config.unused_later())
    return decisive | {
        path: value
        for path, value in config.leaves()
        if not any(within(path, name) for name in neutral)
    }


def config_hash(config: RunConfig, dataset_size: int, data_identity: str = "") -> str:
    """Return the SHA-256 of `identity` and the data's: equal for two halves of one run."""
    data = [data_identity] if data_identity else []
    # The executor's keys had another name when the first runs were saved, which still go on.
    decisive = {
        path.replace("executor.", "pipeline.", 1): value for path, value in identity(config).items()
    }
    text = json.dumps([decisive, dataset_size, *data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


EXCLUSIVE = (
    ("train.steps", "train.epochs", None),
    ("checkpoint.every_steps", "checkpoint.every_epochs", None),
    ("schedule.warmup_steps", "schedule.warmup_epochs", 0),
)
"""Pairs of which a run has one, and what the other is then."""


def clear_conflicting(values: dict[str, Any]) -> dict[str, Any]:
    """Unset the other unit of a length that is given in one unit: ``train.steps`` and epochs.

    Args:
        values: Overrides of one origin; when they set both units they are left alone, and the
            config says what is wrong.
    """
    cleared = dict(values)
    for first, second, nothing in EXCLUSIVE:
        for name, other in ((first, second), (second, first)):
            if (
                name in values
                and other not in values
                and str(values[name]).lower() not in ("none", "0")
            ):
                cleared[other] = nothing
    return cleared
