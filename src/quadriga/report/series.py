"""Pure functions from logged records to curves: smoothing, thinning and axis ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quadriga.engine.logs.results import EvaluationRecord
from quadriga.formatting import reading
from quadriga.report.run_files import Record, number_of

BUCKETS = 400
"""Maximum number of buckets of a curve; a longer curve is thinned to each bucket's extremes."""

LOG_RATIO = 30
"""Positive values whose largest ratio exceeds this are drawn on a logarithmic axis."""

_BOOKKEEPING = (
    "step",
    "epoch",
    "samples",
    "lr",
    "grad_norm",
    "step_seconds",
    "data_wait_share",
    "communication_share",
    "pipeline_wait_share",
    "checkpoint_stall_share",
    "samples_per_second",
    "tokens_per_second",
    "flops_per_second",
    "mfu",
    "skipped",
    "memory_gib",
    "memory_peak_gib",
    "eta_seconds",
)


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps."""

    title: str
    unit: str
    steps: list[float]
    values: list[float]
    smoothed: list[float] | None
    """Moving average; None where the quantity is not noisy."""
    logarithmic: bool = False
    from_zero: bool = False
    skipped: int = 0
    """Values that were not finite."""
    marks: tuple[tuple[float, str], ...] = ()
    """(step, event)."""

    @property
    def main(self) -> list[float]:
        """The values of the main line: `smoothed`, else `values`."""
        return self.values if self.smoothed is None else self.smoothed


def curves_of(
    metrics: Sequence[Record],
    events: Sequence[Record] = (),
    evaluations: Sequence[EvaluationRecord] = (),
) -> list[Curve]:
    """Return the curves of a run: the loss, the method's metrics and the engine's measurements.

    Args:
        metrics: Logged records in the order of the steps.
        events: Events that are marked on the loss.
        evaluations: Evaluations; the run's own have a curve for each number.
    """
    marks = tuple((float(e["step"]), str(e["event"])) for e in events)
    others = dict.fromkeys(name for record in metrics for name in record)
    evaluated = _evaluated(evaluations)
    found_later = dict.fromkeys(name for record in evaluated for name in record)
    named = [name for name in others if name not in (*_BOOKKEEPING, "loss", *found_later)]
    found = [
        replace(curve_of(metrics, "loss", "loss"), marks=marks),
        *(_metric_curve(metrics, name) for name in named),
        *_evaluation_curves(evaluated, found_later),
        curve_of(metrics, "lr", "learning rate", smooth=False, from_zero=True),
        curve_of(metrics, "grad_norm", "gradient norm"),
        curve_of(metrics, "samples_per_second", "throughput", unit="samples/s", from_zero=True),
        curve_of(metrics, "mfu", "model FLOP/s utilisation", unit="%", scale=100.0, from_zero=True),
        curve_of(
            metrics,
            "data_wait_share",
            "time spent waiting for data",
            unit="%",
            scale=100.0,
            from_zero=True,
        ),
        curve_of(metrics, "memory_gib", "memory", unit="GiB", smooth=False, from_zero=True),
        curve_of(
            metrics, "memory_peak_gib", "memory, peak", unit="GiB", smooth=False, from_zero=True
        ),
    ]
    return [curve for curve in found if curve.values]


def _evaluated(evaluations: Sequence[EvaluationRecord]) -> list[Record]:
    """Return what the run's own protocols found: a record per step, with the names they have."""
    by_step: dict[int, Record] = {}
    for record in evaluations:
        if record.own:
            by_step.setdefault(record.step, {}).update(record.named_metrics)
    return [{**by_step[step], "step": step} for step in sorted(by_step)]


def _evaluation_curves(evaluated: Sequence[Record], names: Iterable[str]) -> Iterator[Curve]:
    """Yield a curve of each evaluated number that there are several values of."""
    for name in names:
        factor, unit = reading(name)
        curve = curve_of(evaluated, name, name, unit=unit, scale=factor, smooth=False)
        if name != "step" and not name.endswith("_random") and len(curve.values) > 1:
            yield curve


def _metric_curve(metrics: Sequence[Record], name: str) -> Curve:
    """Return the curve of one of the method's metrics; accuracies are in percent."""
    factor, unit = reading(name)
    return curve_of(metrics, name, name.replace("_", " "), unit=unit, scale=factor)


def curve_of(
    metrics: Sequence[Record],
    name: str,
    title: str,
    *,
    unit: str = "",
    scale: float = 1.0,
    smooth: bool = True,
    from_zero: bool = False,
) -> Curve:
    """Return the curve of one quantity; values that are not finite are counted, not drawn.

    Args:
        metrics: Logged records in the order of the steps.
        name: Key of the quantity.
        title: Title of the chart.
        unit: Unit of the scaled values.
        scale: Factor on every value.
        smooth: Whether a moving average is drawn.
        from_zero: Whether the axis starts at zero.
    """
    pairs = [(float(r["step"]), number_of(r.get(name))) for r in metrics]
    present = [(step, value * scale) for step, value in pairs if value is not None]
    finite = [(step, value) for step, value in present if math.isfinite(value)]
    values = [value for _, value in finite]
    wide = bool(values) and min(values) > 0 and max(values) > LOG_RATIO * min(values)
    return Curve(
        title=title,
        unit=unit,
        steps=[step for step, _ in finite],
        values=values,
        smoothed=moving_average(values, len(values) // 60 + 1) if smooth else None,
        logarithmic=not from_zero and wide,
        from_zero=from_zero,
        skipped=len(present) - len(finite),
    )


def moving_average(values: Sequence[float], radius: int) -> list[float]:
    """Return the mean of each value and its neighbours on either side, without a lag.

    The window narrows towards the start, so that the curve starts at the first value. At the end
    it loses only its right half, so that the last value is an average too.

    Args:
        values: Finite values.
        radius: Neighbours on either side, at least 0.
    """
    data = np.asarray(values, dtype=np.float64)
    radius = min(radius, (len(data) - 1) // 2)
    if radius < 1:
        return list(values)
    # Direct sums: with running sums, a single spike would cost all later values their precision.
    middle = np.convolve(data, np.full(2 * radius + 1, 1.0 / (2 * radius + 1)), "valid")
    first = [data[: 2 * i + 1].mean() for i in range(radius)]
    last = [data[i - radius :].mean() for i in range(len(data) - radius, len(data))]
    return [float(value) for value in (*first, *middle, *last)]


def buckets(count: int, limit: int = BUCKETS) -> list[range]:
    """Cut ``range(count)`` into at most `limit` consecutive parts of nearly equal length."""
    parts = min(count, limit)
    return [range(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


def envelope(steps: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """Thin a curve to its lowest and highest point in each bucket, in the order of the steps.

    Args:
        steps: Ascending steps.
        values: One value per step.
    """
    points = []
    for bucket in buckets(len(values)):
        low = min(bucket, key=values.__getitem__)
        high = max(bucket, key=values.__getitem__)
        points += [(steps[i], values[i]) for i in sorted({low, high})]
    return points


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) inside [low, high].

    Args:
        low: Start of the axis.
        high: End of the axis, above `low`.
        wanted: Approximate number of ticks.
    """
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [factor * power for factor in (10, 5, 2, 1, 0.5) if factor < 10 or 5 * power < rough]
    fitting = [step for step in steps if step >= rough * 0.999]
    # The next finer step is used where the coarse one has no multiple inside.
    for step in (fitting[-1], *steps[len(fitting) :]):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if first <= last:
            return [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    return []


def decades(low: float, high: float) -> list[float]:
    """Return tick values for a logarithmic axis: powers of ten, or 1-2-5 steps when few fit."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**p for p in range(first, last + 1)]
    inside = [value for value in powers if low <= value <= high]
    if len(inside) >= 3:
        return inside[:: math.ceil(len(inside) / 5)]
    return [f * p for p in powers for f in (1, 2, 5) if low <= f * p <= high]


def short(value: float) -> str:
    """Return a number in at most about six characters: 0.4312, 1.5e-4, 12,400."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
