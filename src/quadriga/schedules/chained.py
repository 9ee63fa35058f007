"""A learning rate that several curves shape one after the other, as in a list of schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, final

from pydantic import Field, model_validator

from quadriga.config.base import Config
from quadriga.contracts import Progress, ScheduleConfig
from quadriga.schedules.curves import warmup_factor

Steps = Annotated[int, Field(ge=0, le=2**30)]
Factor = Annotated[float, Field(ge=0, le=1e6)]


class CurveConfig(Config):
    """One curve: what it makes of the rate that the curves before it have left.

    A curve counts its own time t from 0 at `begin`, in units of `every` steps; from `end` on it
    stays at its last value.
    """

    form: Literal["linear", "constant", "cosine", "polynomial", "exponential", "step"]
    """linear: from `start` to `stop` times the rate; constant: `start` times the rate until the
    last unit; cosine: half a cosine from the rate to `floor` in `period` units; polynomial: its
    power; exponential: `gamma` in each unit; step: `gamma` at each of `milestones`."""
    begin: Steps = 0
    """First unit in which the curve acts."""
    end: Steps = 2**30
    """First unit in which it does not act any more."""
    every: int = Field(1, ge=1, le=2**30)
    """Optimizer steps of a unit: 1 for a change at each step, the steps of an epoch for one at
    each epoch."""
    start: Factor = 1.0
    """Factor at `begin` of a linear or constant curve."""
    stop: Factor = 1.0
    """Factor in the last unit of a linear curve."""
    floor: Factor = 0.0
    """Where a cosine or polynomial curve ends, as a factor of the peak learning rate."""
    period: int = Field(1, ge=1, le=2**30)
    """Units in which a cosine falls; it rises again afterwards."""
    power: float = Field(1.0, gt=0, le=1e3)
    """Exponent of a polynomial curve."""
    gamma: Factor = 0.1
    """Factor of an exponential or step curve."""
    milestones: tuple[Steps, ...] = ()
    """Units, counted from `begin`, at which a step curve falls; twice for a fall of two steps."""

    @model_validator(mode="after")
    def _end_after_begin(self) -> CurveConfig:
        if self.end <= self.begin:
            raise ValueError(f"end must be above begin ({self.begin}), but is {self.end}")
        return self

    def apply(self, rate: float, step: int) -> float:
        """Return the factor of the peak learning rate after this curve.

        Args:
            rate: The factor that the curves before it have left.
            step: Finished optimizer steps.
        """
        unit = step // self.every
        if unit < self.begin:
            return rate
        last = self.end - self.begin - 1
        return _FORMS[self.form](self, rate, min(unit - self.begin, last), last)

    def scales_only(self) -> bool:
        """Return whether the curve is a factor, so that its order among others does not matter."""
        return self.form not in ("cosine", "polynomial") or self.floor == 0


def _linear(curve: CurveConfig, rate: float, unit: int, last: int) -> float:
    share = unit / last if last else 0.0
    return rate * (curve.start + (curve.stop - curve.start) * share)


def _constant(curve: CurveConfig, rate: float, unit: int, last: int) -> float:
    return rate * (curve.start if unit < last or last == 0 else 1.0)


def _cosine(curve: CurveConfig, rate: float, unit: int, last: int) -> float:
    share = (1.0 + math.cos(math.pi * unit / curve.period)) / 2
    return curve.floor + (rate - curve.floor) * share


def _polynomial(curve: CurveConfig, rate: float, unit: int, last: int) -> float:
    left = 1.0 - unit / last if last else 1.0
    return curve.floor + (rate - curve.floor) * math.pow(left, curve.power)


def _exponential(curve: CurveConfig, rate: float, unit: int, last: int) -> float:
    return rate * math.pow(curve.gamma, unit)


def _step(curve: CurveConfig, rate: float, unit: int, last: int) -> float:
    return rate * math.pow(curve.gamma, sum(unit >= stone for stone in curve.milestones))


_FORMS: dict[str, Callable[[CurveConfig, float, int, int], float]] = {
    "linear": _linear,
    "constant": _constant,
    "cosine": _cosine,
    "polynomial": _polynomial,
    "exponential": _exponential,
    "step": _step,
}


@final
class ChainedConfig(ScheduleConfig):
    """Linear warm-up, then curves that act one after the other, in the order of their begins.

    Curves count from step 0; a warm-up may also be a linear curve among them.
    """

    curves: tuple[CurveConfig, ...] = ()
    """The curves; none: a constant rate."""

    @model_validator(mode="after")
    def _order_is_clear(self) -> ChainedConfig:
        for place, curve in enumerate(self.curves):
            for other in self.curves[:place]:
                first, second = sorted((curve, other), key=_begin)
                overlap = _begin(second) < first.end * first.every
                if overlap and not (curve.scales_only() and other.scales_only()):
                    raise ValueError(
                        f"curves.{place} must not act at the same time as another while one of "
                        f"them has a floor, but begins at {curve.begin}"
                    )
        return self

    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate."""
        warming = warmup_factor(self, progress)
        if warming is not None:
            return warming
        rate = 1.0
        for curve in sorted(self.curves, key=_begin):
            rate = curve.apply(rate, progress.step)
        return rate


def _begin(curve: CurveConfig) -> int:
    return curve.begin * curve.every
