"""Linear warm-up, then a half cosine (Loshchilov and Hutter, SGDR, ICLR 2017, arXiv:1608.03983)."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from quadriga.contracts import Progress, ScheduleConfig


class WarmupCosineConfig(ScheduleConfig):
    """Rise linearly over the warm-up, then fall along a half cosine, step by step."""

    warmup_epochs: float = Field(0.0, ge=0)
    """Length of the warm-up in epochs."""
    warmup_steps: int = Field(0, ge=0)
    """Length of the warm-up in optimizer steps, instead of epochs."""
    start_factor: float = Field(1e-4, ge=0, le=1)
    """Multiplier of the peak learning rate at step 0."""
    final_factor: float = Field(0.0, ge=0, le=1)
    """Multiplier that the cosine falls to."""

    @model_validator(mode="after")
    def _one_unit(self) -> WarmupCosineConfig:
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(
                f"warmup_steps must be 0 when warmup_epochs is set ({self.warmup_epochs}), "
                f"but is {self.warmup_steps}"
            )
        return self

    def warmup_length(self, progress: Progress) -> int:
        """Return the warm-up in optimizer steps."""
        if self.warmup_steps:
            return self.warmup_steps
        return round(self.warmup_epochs * progress.dataset_size / progress.batch_size)

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        With warm-up length W and total T: at step t < W it is ``s + (1 - s) t / (W - 1)``, so
        that the peak is reached at the last warm-up step; from W on it is
        ``f + (1 - f) (1 + cos(pi (t - W) / (T - W))) / 2``.
        """
        warmup, step = self.warmup_length(progress), progress.step
        if step < warmup:
            rise = step / (warmup - 1) if warmup > 1 else 1.0
            return self.start_factor + (1.0 - self.start_factor) * rise
        remaining = max(1, progress.total_steps - warmup)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / remaining)))
        return self.final_factor + (1.0 - self.final_factor) * cosine
