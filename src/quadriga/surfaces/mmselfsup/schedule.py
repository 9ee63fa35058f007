"""A list of parameter schedulers as one schedule of the learning rate.

A scheduler acts from ``begin`` on, and keeps its last value from ``end`` on. What it counts is an
epoch, or an iteration with ``by_epoch=False``; ``convert_to_iter_based`` turns a length in epochs
into one in iterations, so that the rate changes at each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FOREVER = 1_000_000_000
"""``end`` of a scheduler that names none."""


@dataclass(frozen=True)
class Units:
    """What the lengths of a scheduler are converted with."""

    epoch_steps: int
    """Optimizer steps of an epoch."""
    accumulate: int
    """Iterations of an optimizer step."""
    lr: float
    """The learning rate as written in the config."""


def schedule_of(schedulers: Sequence[Mapping[str, Any]], units: Units) -> dict[str, Any]:
    """Return the values of a schedule of kind ``chained``.

    Args:
        schedulers: The list ``param_scheduler``; each has been checked against the table.
        units: The lengths of an epoch and of a step.
    """
    return {"kind": "chained", "curves": [_curve(given, units) for given in schedulers]}


def _curve(given: Mapping[str, Any], units: Units) -> dict[str, Any]:
    by_epoch = given.get("by_epoch", True)
    is_converted = by_epoch and given.get("convert_to_iter_based", False)

    def steps(length: float) -> int:
        """Return a length in the units that the curve counts."""
        if is_converted:
            return int(length * units.epoch_steps)
        return int(length) if by_epoch else round(length / units.accumulate)

    begin, end = given.get("begin", 0), given.get("end", FOREVER)
    curve = {
        "every": units.epoch_steps if by_epoch and not is_converted else 1,
        "begin": steps(begin),
        "end": max(steps(begin) + 1, steps(end) if end < FOREVER else 2**30),
    }
    return curve | FORMS[given["type"]](given, steps, units)


def _linear(
    given: Mapping[str, Any], steps: Callable[[float], int], units: Units
) -> dict[str, Any]:
    start, stop = given.get("start_factor", 1 / 3), given.get("end_factor", 1.0)
    return {"form": "linear", "start": start, "stop": stop}


def _constant(
    given: Mapping[str, Any], steps: Callable[[float], int], units: Units
) -> dict[str, Any]:
    return {"form": "constant", "start": given.get("factor", 1 / 3)}


def _cosine(
    given: Mapping[str, Any], steps: Callable[[float], int], units: Units
) -> dict[str, Any]:
    length = given.get("end", FOREVER) - given.get("begin", 0)
    period = max(1, steps(given.get("T_max") or length))
    return {"form": "cosine", "period": period, "floor": _floor(given, units)}


def _polynomial(
    given: Mapping[str, Any], steps: Callable[[float], int], units: Units
) -> dict[str, Any]:
    return {"form": "polynomial", "power": given.get("power", 1), "floor": _floor(given, units)}


def _exponential(
    given: Mapping[str, Any], steps: Callable[[float], int], units: Units
) -> dict[str, Any]:
    return {"form": "exponential", "gamma": given["gamma"]}


def _milestones(
    given: Mapping[str, Any], steps: Callable[[float], int], units: Units
) -> dict[str, Any]:
    stones = sorted(steps(stone) for stone in given["milestones"])
    return {"form": "step", "gamma": given.get("gamma", 0.1), "milestones": stones}


def _floor(given: Mapping[str, Any], units: Units) -> float:
    """Return ``eta_min`` as a factor of the rate, with which it is scaled to another batch."""
    if "eta_min_ratio" in given:
        return float(given["eta_min_ratio"])
    return float(given.get("eta_min", 0.0)) / units.lr if units.lr else 0.0


FORMS: dict[str, Callable[[Mapping[str, Any], Callable[[float], int], Units], dict[str, Any]]] = {
    "LinearLR": _linear,
    "ConstantLR": _constant,
    "CosineAnnealingLR": _cosine,
    "PolyLR": _polynomial,
    "ExponentialLR": _exponential,
    "MultiStepLR": _milestones,
}
"""Type of a scheduler -> the values of its curve."""
