"""Configs of training and the moving average, and the plan of a run's steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from quadriga.config.base import Config, Later
from quadriga.contracts.objective import Progress


class TrainConfig(Config):
    """Length, batch, device, precision and parallelism of the training."""

    epochs: float | None = Field(None, gt=0, le=1e6)
    """Length of the run in epochs; either this or `steps`."""
    steps: int | None = Field(None, ge=1, le=2**30)
    """Length of the run in optimizer steps."""
    batch_size: int = Field(ge=1, le=2**30)
    """Samples of one optimizer step, over all ranks and micro-batches."""
    repeats: int = Field(1, ge=1, le=2**30)
    """Views of each sample within one step (repeated augmentation). The number of distinct samples
    per step is divided by it; epochs count views."""
    accumulate: int = Field(1, ge=1, le=2**30)
    """Micro-batches per optimizer step on each rank; more of them need less memory."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    ranks: int = Field(1, ge=1, le=2**20)
    """Processes to start on this machine, if no launcher has started them."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Dtype of the matrix products (`--amp` is bfloat16). Weights, gradients and optimizer state
    are always float32; float16 uses loss scaling. auto: bfloat16 on a CPU that multiplies it
    (AVX512-BF16 or AMX), else float32; decided when the run begins and kept."""
    loss_scale: Later[float | None] = Field(None, gt=0, le=2.0**24)
    """Factor of the loss under float16, so that small gradients do not vanish; none: as large as
    no gradient overflows. A step whose gradient overflows makes no update."""
    compile: bool = False
    """Whether blocks are compiled (torch.compile)."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation checkpointing of the blocks: what the backward pass recomputes. selective: all
    but matrix products and attention; full: everything. It saves memory and costs time."""
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """How several ranks hold the state: all of it on each rank; a shard on each; or shards
    within groups of `shard_ranks` and copies between the groups."""
    shard_ranks: int | None = Field(None, ge=2, le=2**20)
    """Ranks that share one copy of the state under hsdp; none for the ranks of one host."""
    reshard_after_forward: bool = True
    """Whether a block's gathered weights are freed after its forward pass (ZeRO-3) or kept until
    the step's last backward pass (ZeRO-2: fewer gathers, more memory)."""
    dataset_size: int | None = Field(None, ge=1, le=2**40)
    """Samples per epoch that the recipe was written for. The dry run uses it if the data is not
    available; training always counts the real samples."""

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


class EmaConfig(Config):
    """An exponential moving average of the weights."""

    decay: float | None = Field(None, ge=0, lt=1)
    """``average = decay * average + (1 - decay) * weights`` after each optimizer step; none for
    no average."""
    warmup: bool = False
    """Whether the decay is at most (1 + t) / (10 + t) at step t, which shortens the influence of
    the first weights."""

    @model_validator(mode="after")
    def _warmup_of_something(self) -> EmaConfig:
        if self.warmup and self.decay is None:
            raise ValueError("decay must be set when warmup is true, but is none; such as 0.9999")
        return self


@dataclass(frozen=True)
class StepPlan:
    """Number and size of a run's steps, derived from its config, its data and its ranks."""

    total_steps: int
    batch_size: int
    """Samples of one optimizer step, over all readers and micro-batches."""
    accumulate: int
    """Micro-batches of one reader in a step."""
    world_size: int
    """Number of readers of samples: the ranks, or the replicas of a model cut into stages."""
    dataset_size: int
    lr: float
    """Peak learning rate at the actual batch size."""

    def progress(self, step: int) -> Progress:
        """Return the progress at a step."""
        return Progress(step, self.total_steps, self.batch_size, self.dataset_size)
