"""One chart as HTML: an inline SVG that stretches, with labels that stay crisp at any width."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape

from quadriga.report.series import Curve, buckets, decades, envelope, short, ticks

WIDTH, HEIGHT = 1000.0, 300.0
"""User units of the drawing; it is stretched to the width of the page."""

Scale = Callable[[float], float]


def chart(curve: Curve, identity: str) -> str:
    """Return the HTML of one curve.

    Args:
        curve: With at least one value.
        identity: Unique on the page; letters and digits.
    """
    low, high = value_range(curve)
    position_x = linear_scale(*step_range(curve))
    position_y = logarithmic_scale(low, high) if curve.logarithmic else linear_scale(low, high)
    main = [(curve.steps[b[-1]], curve.main[b[-1]]) for b in buckets(len(curve.values))]
    line = path_of(main, position_x, position_y)
    raw = path_of(envelope(curve.steps, curve.values), position_x, position_y)
    faint = "" if curve.smoothed is None else f'<path class="raw" d="{raw}"/>'
    left, right = position_x(main[0][0]) * WIDTH, position_x(main[-1][0]) * WIDTH
    area = f"{line}L{right:.1f},{HEIGHT:g}L{left:.1f},{HEIGHT:g}Z"
    unit = f" {escape(curve.unit)}" if curve.unit else ""
    scale_note = " · log scale" if curve.logarithmic else ""
    lost = f" · {curve.left_out} not finite" if curve.left_out else ""
    return f"""<figure class="card chart" data-points="{_points(curve, position_x, position_y)}"
 data-unit="{escape(curve.unit)}">
<figcaption><span>{escape(curve.title)}<small>{scale_note}{lost}</small></span>
<b>{escape(short(curve.main[-1]))}<small>{unit}</small></b></figcaption>
<div class="plot" role="img" aria-label="{escape(curve.title)} over the steps">
{_labels(curve, position_x, position_y, low, high)}
<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" aria-hidden="true">
<defs><linearGradient id="fade-{identity}" x1="0" y1="0" x2="0" y2="1">
<stop class="fade-top" offset="0"/><stop class="fade-end" offset="1"/></linearGradient></defs>
<path style="fill:url(#fade-{identity})" d="{area}"/>{faint}<path class="main" d="{line}"/></svg>
{_marks(curve, position_x)}
<i class="cursor" hidden></i><i class="dot" hidden></i><div class="tip" hidden></div>
</div></figure>"""


def value_range(curve: Curve) -> tuple[float, float]:
    """Return the ends of the value axis, with a margin; never of zero length.

    A few wild values (the first steps, a spike) must not flatten the rest: the range is that of
    the smoothed line and of the raw values without the outermost hundredth on either side.
    """
    ordered = sorted(curve.values)
    cut = len(ordered) // 100
    low = min(ordered[cut], min(curve.main))
    high = max(ordered[-1 - cut], max(curve.main))
    if curve.from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if curve.logarithmic:
        return low / 1.1, high * 1.1
    if high <= low:
        half = abs(high) * 0.1 or 1.0
        return low - half, high + half
    margin = 0.06 * (high - low)
    return (low if curve.from_zero and low == 0.0 else low - margin), high + margin


def step_range(curve: Curve) -> tuple[float, float]:
    """Return the ends of the step axis, never of zero length."""
    first, last = curve.steps[0], curve.steps[-1]
    return (first, last) if last > first else (first - 1.0, last + 1.0)


def linear_scale(low: float, high: float) -> Scale:
    """Return the map from [low, high] to [0, 1]; values outside stay at the edge."""
    return lambda value: min(1.0, max(0.0, (value - low) / (high - low)))


def logarithmic_scale(low: float, high: float) -> Scale:
    """Return the map from [low, high], both above 0, to [0, 1] by the logarithm."""
    inner = linear_scale(math.log(low), math.log(high))
    return lambda value: inner(math.log(max(value, low)))


def path_of(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    """Return the SVG path through `points`; a single point becomes a short dash."""
    drawn = [f"{x(step) * WIDTH:.1f},{(1 - y(value)) * HEIGHT:.1f}" for step, value in points]
    if len(drawn) == 1:
        across, down = drawn[0].split(",")
        return f"M{float(across) - 6:.1f},{down}L{float(across) + 6:.1f},{down}"
    return "M" + "L".join(drawn)


def _labels(curve: Curve, x: Scale, y: Scale, low: float, high: float) -> str:
    values = decades(low, high) if curve.logarithmic else ticks(low, high)
    rows = [
        f'<span class="y" style="bottom:{100 * y(value):.2f}%"><i></i>{escape(short(value))}</span>'
        for value in values
    ]
    first, last = step_range(curve)
    columns = [
        f'<span class="x" style="left:{100 * x(value):.2f}%">{escape(short(value))}</span>'
        for value in ticks(first, last, 5)
        if value == int(value) and 0.03 < x(value) < 0.97
    ]
    return "".join(rows + columns)


def _marks(curve: Curve, x: Scale) -> str:
    """Return a line at each event inside the axis, thinned to what can be told apart."""
    first, last = step_range(curve)
    at = {
        round(100 * x(step), 1): f"{what}, step {step:,.0f}"
        for step, what in curve.marks
        if first <= step <= last
    }
    return "".join(
        f'<i class="mark" style="left:{left}%" title="{escape(text)}"></i>'
        for left, text in at.items()
    )


def _points(curve: Curve, x: Scale, y: Scale) -> str:
    """Return what the pointer shows: [across, up, step, value read, raw value] per bucket."""
    points = []
    for bucket in buckets(len(curve.values)):
        i = bucket[-1]
        step, value = curve.steps[i], curve.main[i]
        raw = "" if curve.smoothed is None else short(curve.values[i])
        points.append([round(x(step), 4), round(y(value), 4), f"{step:,.0f}", short(value), raw])
    return escape(json.dumps(points, separators=(",", ":")))
