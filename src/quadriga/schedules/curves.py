"""Learning-rate schedules: a linear warm-up, then one of several curves."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal, final

from pydantic import Field, model_validator

from quadriga.contracts import Progress, ScheduleConfig


def steps_of(epochs: float, progress: Progress) -> int:
    """Convert a length in epochs to the nearest number of optimizer steps."""
    return round(epochs * progress.dataset_size / progress.batch_size)


def warmup_length(config: ScheduleConfig, progress: Progress) -> int:
    """Return the length of the warm-up in optimizer steps."""
    return config.warmup_steps or steps_of(config.warmup_epochs, progress)


def warmup_factor(config: ScheduleConfig, progress: Progress) -> float | None:
    """Return the multiplier of the peak learning rate during the warm-up; None after it.

    With the warm-up's length W and start factor s, step t < W has ``s + (1 - s) t / W``: step W,
    the first after the warm-up, has the peak, as in timm, BERT, DeiT and MAE.
    """
    warmup = warmup_length(config, progress)
    if progress.step >= warmup:
        return None
    return config.start_factor + (1.0 - config.start_factor) * progress.step / warmup


def share_after_warmup(config: ScheduleConfig, progress: Progress) -> float:
    """Return the finished fraction of the steps after the warm-up, from 0 to 1.

    ``(t - W) / (T - W)`` with the warm-up's length W and T steps in total.
    """
    warmup = warmup_length(config, progress)
    remaining = max(1, progress.total_steps - warmup)
    return min(1.0, (progress.step - warmup) / remaining)


def share_of_decay(config: ScheduleConfig, progress: Progress, under_warmup: bool) -> float:
    """Return the finished fraction of the decay, from 0 to 1.

    Args:
        config: The schedule.
        progress: A step after the warm-up.
        under_warmup: Whether the decay spans the whole run: ``t / T`` at step t of T; otherwise
            it begins at the end of the warm-up (`share_after_warmup`).
    """
    if not under_warmup:
        return share_after_warmup(config, progress)
    return min(1.0, progress.step / max(1, progress.total_steps))


@final
class LinearConfig(ScheduleConfig):
    """Linear warm-up, then linear decay per step."""

    final_factor: float = Field(0.0, ge=0, le=1)
    """Final multiplier of the peak learning rate."""

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        ``f + (1 - f) (1 - u)`` with the finished fraction u of the steps after the warm-up.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        left = 1.0 - share_after_warmup(self, progress)
        return self.final_factor + (1.0 - self.final_factor) * left


@final
class PolynomialConfig(ScheduleConfig):
    """Linear warm-up, then decay as a power of the remaining fraction of the run."""

    power: float = Field(2.0, gt=0, le=1e3)
    """Exponent of the remaining fraction."""
    final_factor: float = Field(0.0, ge=0, le=1)
    """Final multiplier of the peak learning rate."""

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        ``f + (1 - f) (1 - u)^p`` with the finished fraction u of the steps after the warm-up.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        left = 1.0 - share_after_warmup(self, progress)
        return self.final_factor + (1.0 - self.final_factor) * math.pow(left, self.power)


@final
class StepDecayConfig(ScheduleConfig):
    """Linear warm-up, then a constant that is multiplied by `gamma` at each milestone."""

    milestone_epochs: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] = ()
    """Epochs, from the start of the run, at which the learning rate falls."""
    milestone_steps: tuple[Annotated[int, Field(gt=0, le=2**30)], ...] = ()
    """Optimizer steps at which the learning rate falls, instead of epochs."""
    gamma: float = Field(0.1, ge=0, le=1)
    """Factor of the learning rate at each milestone."""

    @model_validator(mode="after")
    def _rising_milestones_of_one_unit(self) -> StepDecayConfig:
        if self.milestone_epochs and self.milestone_steps:
            raise ValueError(
                "milestone_steps must be empty when milestone_epochs is set "
                f"({list(self.milestone_epochs)}), but is {list(self.milestone_steps)}"
            )
        for name in ("milestone_epochs", "milestone_steps"):
            milestones = getattr(self, name)
            if any(late <= early for early, late in pairwise(milestones)):
                raise ValueError(f"{name} must rise from one to the next, but is {[*milestones]}")
        return self

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate: ``gamma^(milestones reached)``.

        A milestone during the warm-up takes effect after it.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        in_epochs = tuple(steps_of(epochs, progress) for epochs in self.milestone_epochs)
        reached = sum(progress.step >= step for step in self.milestone_steps or in_epochs)
        return self.gamma**reached


@final
class TanhConfig(ScheduleConfig):
    """Linear warm-up, then a hyperbolic tangent: long near the peak, then a fast decay."""

    lower: float = Field(-6.0, ge=-1e3, le=1e3)
    """Start of tanh's argument; the lower, the longer the rate stays near the peak."""
    upper: float = Field(4.0, ge=-1e3, le=1e3)
    """End of tanh's argument; the higher, the longer the rate stays near the minimum."""
    final_factor: float = Field(0.0, ge=0, le=1)
    """Final multiplier: the minimum learning rate over the peak learning rate."""
    under_warmup: bool = False
    """Whether the curve starts at step 0, as in DeiT, and not at the end of the warm-up; the rate
    then drops from the peak to the curve at the end of the warm-up."""

    @model_validator(mode="after")
    def _upper_above_lower(self) -> TanhConfig:
        if self.upper <= self.lower:
            raise ValueError(f"upper must be above lower ({self.lower}), but is {self.upper}")
        return self

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        With the finished fraction u of the decay and ``h(u) = tanh(L + (U - L) u)``, the paper's
        ``(1 - h) / 2`` scaled to reach both ends: ``f + (1 - f) (h(1) - h) / (h(1) - h(0))``.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        over = share_of_decay(self, progress, self.under_warmup)
        first, last = math.tanh(self.lower), math.tanh(self.upper)
        here = math.tanh(self.lower + (self.upper - self.lower) * over)
        return self.final_factor + (1.0 - self.final_factor) * (last - here) / (last - first)


@final
class WarmupCosineConfig(ScheduleConfig):
    """Linear warm-up, then a half cosine per step."""

    final_factor: float = Field(0.0, ge=0, le=1)
    """Final multiplier: the minimum learning rate over the peak learning rate."""
    under_warmup: bool = False
    """Whether the cosine starts at step 0, as in DeiT, and not at the end of the warm-up; the rate
    then drops from the peak to the cosine at the end of the warm-up."""

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        ``f + (1 - f) (1 + cos(pi u)) / 2`` with the finished fraction u of the decay.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        cosine = 0.5 * (1.0 + math.cos(math.pi * share_of_decay(self, progress, self.under_warmup)))
        return self.final_factor + (1.0 - self.final_factor) * cosine


@final
class WarmupStableDecayConfig(ScheduleConfig):
    """Linear warm-up, a constant at the peak, and a decay over the last steps."""

    decay_share: float = Field(0.2, ge=0, le=1)
    """Length of the decay as a fraction of the whole run, limited to the steps after the
    warm-up."""
    decay: Literal["linear", "one_minus_sqrt"] = "one_minus_sqrt"
    """The form of the decay; ``one_minus_sqrt`` is that of Haegele et al. (arXiv:2405.18392)."""
    final_factor: float = Field(0.0, ge=0, le=1)
    """Final multiplier of the peak learning rate."""

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate.

        With T steps in total and D decay steps, ``u = (t - (T - D)) / D`` from step T - D on:
        linear ``f + (1 - f) (1 - u)``; one_minus_sqrt ``f + (1 - f) (1 - sqrt(u))``.
        """
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        total = progress.total_steps
        length = min(round(self.decay_share * total), total - warmup_length(self, progress))
        since = progress.step - (total - length)
        if since <= 0:
            return 1.0
        over = min(1.0, since / length) if length > 0 else 1.0
        left = 1.0 - (over if self.decay == "linear" else math.sqrt(over))
        return self.final_factor + (1.0 - self.final_factor) * left
