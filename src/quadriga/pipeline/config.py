"""How a model is spread over stages, as values."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from quadriga.config.base import Config


class PipelineConfig(Config):
    """How a model is cut into stages that lie on different ranks.

    `train.accumulate` is the number of micro-batches that a step feeds through them.
    """

    schedule: Literal[
        "none",
        "sequential",
        "gpipe",
        "1f1b",
        "2bw",
        "torch_gpipe",
        "torch_1f1b",
        "interleaved",
        "zero_bubble",
        "zbv",
        "dualpipev",
    ] = "none"
    """none: every rank computes the whole model. Ours: sequential, gpipe, 1f1b, and 2bw
    (PipeDream-2BW: no flush, gradients one step late). torch's: the others, with
    `stages_per_rank` stages on each rank."""
    stages: int = Field(1, ge=1)
    """Ranks that one copy of the model is spread over; the other ranks hold further copies."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; none for stages of about the same number."""
    stages_per_rank: int = Field(1, ge=1)
    """Stages on each rank, for torch's interleaved schedules."""
    conf: Path | None = None
    """A ``conf.json`` that says which module lies on which stage and which rank; it replaces
    `stages` and `depths`."""
    deferred_update: bool = True
    """Whether 2bw reduces, clips and steps beside the next micro-batches, or before them."""
    flushed_steps: int = Field(0, ge=0)
    """Steps at the start that 2bw makes without delay, with a flush after each."""
    error_feedback: float = Field(0.0, ge=0)
    """Strength of 2bw's correction of the delay: with u(t) the optimizer's update,
    ``W -= u(t) + c * (u(t) - u(t-1))``; 0 for none."""
