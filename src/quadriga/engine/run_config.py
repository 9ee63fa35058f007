"""`RunConfig`: the complete configuration of a run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from quadriga.config.base import Config, Later, NamedFile, within
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
    "complete",
]


class HealthConfig(Config):
    """Handling of non-finite steps, loss spikes and hangs."""

    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """Response to a non-finite loss or gradient. stop: end the run before the update; skip: skip
    the update; rollback: return to the last checkpoint and repeat the steps, and if the step is
    bad again, skip the updates from the checkpoint to it."""
    max_bad_steps: int = Field(10, ge=1, le=2**30)
    """The run stops when more steps than this are bad within `window` steps. Under rollback it is
    also the limit of different steps that cause one."""
    window: int = Field(100, ge=8, le=2**30)
    """Number of previous steps that a loss is compared with, and within which bad steps count."""
    spike_factor: float | None = Field(8.0, gt=1, le=1e6)
    """A loss that exceeds the window's median by this many median absolute deviations is reported
    as a spike; none for no reports."""
    collapse_steps: int | None = Field(200, ge=1, le=2**30)
    """A metric that says whether a method's outputs have collapsed is reported after this many
    steps outside its healthy range; none for no reports."""
    hang_factor: float | None = Field(20.0, gt=1, le=1e6)
    """A step that takes this many times the median of recent steps is a hang; none for no hang
    detection."""
    hang_seconds: float = Field(300.0, gt=0, le=1e6)
    """A shorter step, in seconds, is never a hang."""
    join_minutes: float = Field(5.0, gt=0, le=1e6)
    """How long ranks wait for each other at the start."""


WARMUP = 3
"""Steps before the first profiled one if only a number is given, because the first steps of a run
compile, allocate and fill caches."""


def profiled_steps(text: str, start: int) -> range | None:
    """Parse ``log.profile`` into steps, counted from 1 as in metrics.jsonl.

    Args:
        text: ``5`` (number of steps after `WARMUP`) or ``10-14`` (first and last step).
        start: Finished steps.

    Returns:
        The steps; None if the text is invalid or the range empty.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})(?:-([1-9][0-9]{0,8}))?", text)
    if found is None:
        return None
    if found[2] is None:
        first = start + WARMUP + 1
        return range(first, first + int(found[1]))
    return range(int(found[1]), int(found[2]) + 1) or None


class LoaderConfig(Config):
    """How samples are read; does not change which samples are read."""

    workers: int = Field(2, ge=0, le=1024)
    """Worker processes per rank; 0 reads in the training process."""
    prefetch: int = Field(4, ge=1, le=1024)
    """Micro-batches that each worker reads ahead."""
    max_unreadable_fraction: float = Field(0.01, ge=0, le=1)
    """The run stops if a larger fraction of the samples cannot be read."""


class LogConfig(Config):
    """What is logged during training."""

    every_steps: int = Field(20, ge=1, le=2**30)
    """Optimizer steps between two lines of metrics.jsonl."""
    loggers: tuple[LoggerConfig, ...] = (TensorboardConfig(),)
    """Loggers in addition to metrics.jsonl: ``[{"kind": "tensorboard"}, {"kind": "csv"}]``; other
    kinds are wandb and mlflow."""
    samples: bool = False
    """Whether each rank logs the samples that it reads (``WORK_DIR/samples``), to compare the data
    of two runs. The files grow with every sample."""
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
    """When checkpoints are saved and which are kept; one is always saved at the end."""

    every_minutes: float | None = Field(10.0, gt=0, le=1e6)
    """Minutes of training between two checkpoints, unless `every_steps` or `every_epochs` is set;
    none for the end only."""
    every_steps: int | None = Field(None, ge=1, le=2**30)
    """Optimizer steps between two checkpoints; either this or `every_epochs`, or neither."""
    every_epochs: float | None = Field(None, gt=0, le=1e6)
    """Epochs between two checkpoints."""
    keep: int = Field(2, ge=1, le=2**30)
    """How many of the newest checkpoints are kept."""
    keep_every_steps: int | None = Field(None, ge=1, le=2**30)
    """Checkpoints whose step is a multiple of this are always kept; with `every_minutes` one is
    saved at each of these steps as well."""
    keep_best: str | None = None
    """A metric (``loss``, ``linear_probe.top1``); the checkpoint with its best value is kept. With
    `every_minutes` a metric of a protocol delays each checkpoint to the next evaluation."""
    best_is: Literal["highest", "lowest"] = "lowest"
    """Which values of `keep_best` are better."""
    asynchronous: bool = True
    """Whether training continues while a checkpoint is written, and waits only for the copy to
    host memory."""
    on_failure: Literal["stop", "continue"] = "stop"
    """What to do if a checkpoint cannot be written (a full disk). Older checkpoints are kept."""

    @property
    def seconds(self) -> float | None:
        """Seconds of training between two checkpoints, if their interval is a time."""
        is_time = self.every_steps is None and self.every_epochs is None
        return 60 * self.every_minutes if is_time and self.every_minutes is not None else None

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
    every_epochs: float | None = Field(None, gt=0, le=1e6)
    """Epochs between two evaluations during training; none for the end only."""
    at_start: bool = False
    """Whether to evaluate before the first step as well, such as an assembled model."""
    weights: Literal["raw", "ema"] = "raw"
    """Which weights are evaluated: those of the last step, or their moving average
    (`ema.decay`)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the encoder's matrix products. auto: that of the training if the run began on a CPU,
    else float32."""
    train_samples: int | None = Field(None, ge=1, le=2**40)
    """Size of the fixed subset of the training data to evaluate with; none for all of it."""
    test_samples: int | None = Field(None, ge=1, le=2**40)
    """Size of the fixed subset of the test data to evaluate on; none for all of it."""
    workers: int = Field(1, ge=0, le=1024)
    """Worker processes that read the evaluation data."""


class WarmStartConfig(Config):
    """Initial weights to load instead of random ones."""

    path: NamedFile[str | None] = None
    """A file of weights (this project's, timm's or Hugging Face's names), the folder of a published
    model, a checkpoint or a run."""
    weights: Literal["raw", "ema"] = "raw"
    """Which weights of a checkpoint are loaded: those of its step, or their moving average."""
    part: Later[Literal["all", "encoder", "teacher"]] = "all"
    """Which of them: all; or for this run's encoder the encoder alone, or the teacher's. All other
    parts of this run then keep their random values."""
    strict: bool = True
    """Whether missing tensors, unexpected tensors and other shapes are an error. Otherwise they
    are listed, and tensors without a match keep their random values."""
    interpolate: bool = True
    """Whether position embeddings are resampled to this model's grid."""


class RunConfig(StepConfig):
    """The configuration of one run: its steps, its data, and everything around the steps."""

    data: DatasetConfig
    """Where records come from."""
    views: ViewsConfig
    """How records become samples."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """Weights to start from."""
    health: HealthConfig = HealthConfig()
    """Handling of non-finite steps, loss spikes and hangs."""
    loader: LoaderConfig = LoaderConfig()
    """How samples are read."""
    log: LogConfig = LogConfig()
    """What is logged."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are saved and which are kept."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Which protocols evaluate the model."""

    @classmethod
    def upgraded(cls, values: dict[str, Any], sources: dict[str, str]) -> None:
        """Translate a config saved by a revision up to 7f9c01b; see `Config.upgraded`.

        Such a config has a group ``pipeline`` instead of the kinds of ``executor``, and lists in
        ``checkpoint`` the files of other layouts that are written beside checkpoints. Later ones
        may still lack ``evaluation.precision``.
        """
        for name in ("stage_files", "modular_files"):
            values.get("checkpoint", {}).pop(name, None)
        # Before the key, every evaluation was in float32.
        values.get("evaluation", {}).setdefault("precision", "float32")
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
"""Config paths that may change when a run is resumed, because they do not change what it computes
(layout and compilation change only the rounding). Files named by a `Location` may move as well:
the hash covers the size of the data, and the content of a vocabulary."""

Identity = dict[str, Any]


def identity(config: RunConfig) -> Identity:
    """Return the config's leaves that determine what a run computes.

    The executor contributes `ExecutorConfig.decisive`, such as the delay of gradients.
    """
    decisive = {f"executor.{name}": v for name, v in config.executor.decisive().items()}
    neutral = (*NEUTRAL, *config.locations(), *config.unused_later())
    return decisive | {
        path: value
        for path, value in config.leaves()
        if not any(within(path, name) for name in neutral)
    }


def first_difference(
    there: Mapping[str, Any], here: Mapping[str, Any], same: Callable[[str], bool] = lambda _: False
) -> str | None:
    """Return how two identities differ: the first value, and the number of others; None if equal.

    Args:
        there: As `identity` returns it, of a saved run.
        here: The same of the run that the user asked for.
        same: Returns whether a key's values mean the same although they differ.
    """
    names = sorted(there.keys() | here.keys())
    different = [n for n in names if there.get(n) != here.get(n) and not same(n)]
    if not different:
        return None
    first, more = different[0], len(different) - 1
    tail = f" (and {more} more differences)" if more else ""
    return f"{first} is {there.get(first)!r} there and {here.get(first)!r} here{tail}"


def config_hash(config: RunConfig, dataset_size: int, data_identity: str = "") -> str:
    """Return the SHA-256 of `identity` and of the data's size and identity, as hexadecimal text.

    A checkpoint can be resumed only with an equal hash.
    """
    data = [data_identity] if data_identity else []
    # Older runs, which can still be resumed, were hashed with the keys' former name.
    decisive = {
        path.replace("executor.", "pipeline.", 1): value for path, value in identity(config).items()
    }
    text = json.dumps([decisive, dataset_size, *data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


EXCLUSIVE = (
    ("train.steps", "train.epochs", None),
    ("checkpoint.every_steps", "checkpoint.every_epochs", None),
    ("checkpoint.every_minutes", "checkpoint.every_steps", None),
    ("checkpoint.every_minutes", "checkpoint.every_epochs", None),
    ("schedule.warmup_steps", "schedule.warmup_epochs", 0),
)
"""(key, key, value): at most one of the two keys is set; the other one has this value."""


IMAGE_SIZES = ("model.image_px", "views.image_px", "data.image_px")
"""Keys with the size of the model's input images."""


def complete(values: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return overrides with the keys that depend on them.

    The other unit of a length is unset, such as ``train.epochs`` if ``train.steps`` is set. If one
    of `IMAGE_SIZES` is set, those of the others that equal it in `config` get the same value.

    Args:
        values: Overrides from one source. If they set both units, both are kept, and the config's
            validation fails.
        config: The config that they override.
    """
    before = dict(config.leaves())
    # A kind that changes has a size of its own, or none.
    same = [name for name in IMAGE_SIZES if f"{name.split('.')[0]}.kind" not in values]
    given = [name for name in same if name in values and name in before][:1]
    follow = {
        name: values[first]
        for first in given
        for name in same
        if name not in values and before.get(name) == before[first]
    }
    return {**_clear_conflicting(values), **follow}


def _clear_conflicting(values: dict[str, Any]) -> dict[str, Any]:
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
