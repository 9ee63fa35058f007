"""Charts: inline SVG of curves, shares and graphs, and the curves as one PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from quadriga.engine.status import RunState
from quadriga.formatting import measured
from quadriga.report.run_files import Record, number_of
from quadriga.report.series import Curve, buckets, decades, envelope, short, ticks
from quadriga.workflow.graph import Needs, levels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


WIDTH, HEIGHT = 1000.0, 300.0
"""User units of the drawing; it is stretched to the width of the page."""

Scale = Callable[[float], float]


def chart(curve: Curve, identity: str) -> str:
    """Return the HTML of one curve.

    Args:
        curve: The curve, with at least one value.
        identity: An id of letters and digits, unique on the page.
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
    lost = f" · {curve.skipped} not finite" if curve.skipped else ""
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
    """Return the ends of the value axis, with a margin; the axis never has zero length.

    A few outliers (the first steps, a spike) must not flatten the rest: the range covers the
    smoothed line, and the raw values without the outermost hundredth on either side.
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
    """Return the ends of the step axis; it never has zero length."""
    first, last = curve.steps[0], curve.steps[-1]
    return (first, last) if last > first else (first - 1.0, last + 1.0)


def linear_scale(low: float, high: float) -> Scale:
    """Return the linear map from [low, high] to [0, 1]; values outside are clamped."""
    return lambda value: min(1.0, max(0.0, (value - low) / (high - low)))


def logarithmic_scale(low: float, high: float) -> Scale:
    """Return the logarithmic map from [low, high], both above 0, to [0, 1]."""
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
    """Return a line at each event inside the axis, at most one per 0.1 % of the axis."""
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
    """Return the tooltips' data as JSON: per bucket [x, y, step, smoothed value, raw value]."""
    points = []
    for bucket in buckets(len(curve.values)):
        i = bucket[-1]
        step, value = curve.steps[i], curve.main[i]
        raw = "" if curve.smoothed is None else short(curve.values[i])
        points.append([round(x(step), 4), round(y(value), 4), f"{step:,.0f}", short(value), raw])
    return escape(json.dumps(points, separators=(",", ":")))


ACCENT, FAINT, GREY = "#3b5bdb", "#b7c3f3", "#5c6270"
COLUMNS = 3


def save_curves(curves: Sequence[Curve], title: str, path: Path) -> None:
    """Draw each curve in its own panel of a PNG.

    Args:
        curves: At least one curve.
        title: Title above the panels.
        path: The PNG file, with any suffix.

    Raises:
        OSError: The file cannot be written.
    """
    columns = min(COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    # Imported here: matplotlib takes half a second, and every process of a run imports this module.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * columns, 2.6 * rows + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    # The name may hold a dollar sign, which matplotlib would read as mathematics.
    figure.suptitle(title.replace("$", r"\$"), fontweight="bold", x=0.01, ha="left")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, curve in zip(panels, curves, strict=False):
        _draw(panel, curve)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    figure.savefig(path, format="png", metadata={"Software": "Quadriga"})


def _draw(panel: Axes, curve: Curve) -> None:
    if curve.smoothed is not None:
        thinned = envelope(curve.steps, curve.values)
        panel.plot(*zip(*thinned, strict=True), color=FAINT, linewidth=0.8)
    single = "o" if len(curve.steps) == 1 else ""
    panel.plot(curve.steps, curve.main, color=ACCENT, linewidth=1.6, marker=single)
    unit = f" ({curve.unit})" if curve.unit else ""
    panel.set_title(f"{curve.title}{unit}".replace("$", r"\$"), fontsize=10, loc="left", color=GREY)
    if curve.logarithmic:
        panel.set_yscale("log")
    panel.set_ylim(*value_range(curve))
    panel.grid(axis="y", color="#e6e8ee", linewidth=0.8)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color("#c9cdd6")
    panel.tick_params(length=0, labelsize=8, colors=GREY)
    panel.margins(x=0.01)


BOX_WIDTH, BOX_HEIGHT = 212, 58
_GAP_ACROSS, _GAP_DOWN, _MARGIN = 56, 16, 4


def places_of(needs: Needs) -> dict[str, tuple[int, int]]:
    """Return the upper left corner of each node's box, in pixels; columns are centred.

    Args:
        needs: The graph; the nodes of one column keep their order in it.
    """
    levels = levels_of(needs)
    columns: dict[int, list[str]] = {}
    for name in needs:
        columns.setdefault(levels[name], []).append(name)
    tallest = max(map(len, columns.values()))
    pitch = BOX_HEIGHT + _GAP_DOWN
    places = {}
    for level, names in columns.items():
        top = _MARGIN + (tallest - len(names)) * pitch // 2
        for row, name in enumerate(names):
            places[name] = (_MARGIN + level * (BOX_WIDTH + _GAP_ACROSS), top + row * pitch)
    return places


def graph_picture(
    needs: Needs, states: Mapping[str, RunState], result: str, links: Mapping[str, str]
) -> str:
    """Return the picture, as an ``<svg>`` element.

    Args:
        needs: The graph.
        states: Node -> state of its run.
        result: The node whose model is the workflow's result; its box has a thicker line.
        links: Node -> URL of its own report, for nodes that have one.
    """
    places = places_of(needs)
    width = max(x for x, _ in places.values()) + BOX_WIDTH + _MARGIN
    height = max(y for _, y in places.values()) + BOX_HEIGHT + _MARGIN
    edges = "".join(_edge(places[other], places[name]) for name in needs for other in needs[name])
    boxes = "".join(
        _box(name, places[name], states[name], name == result, links.get(name)) for name in needs
    )
    return f"""<div class="card scroll graph"><svg role="img" aria-label="graph of the runs"
width="{width}" height="{height}" viewBox="0 0 {width} {height}">{edges}{boxes}</svg></div>"""


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x, y = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT // 2
    to_x, to_y = end[0], end[1] + BOX_HEIGHT // 2
    bend = (to_x - x) // 2 if to_x > x else _GAP_ACROSS // 2
    return f'<path class="edge" d="M{x},{y}C{x + bend},{y} {to_x - bend},{to_y} {to_x},{to_y}"/>'


def _box(
    name: str, place: tuple[int, int], state: RunState, is_result: bool, link: str | None
) -> str:
    x, y = place
    share = min(1.0, state.step / state.total_steps) if state.total_steps else 0.0
    found: str = state.state
    if state.metric is not None and state.value is not None:
        value = measured(state.metric, state.value)
        found = f"{state.state} \N{MIDDLE DOT} {_last(state.metric)} {value}"
    kind = f"box {state.state}{' result' if is_result else ''}"
    drawn = (
        f'<g class="{kind}"><title>{escape(name)}: {escape(found)}</title>'
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="9"></rect>'
        f'<rect class="done" x="{x + 12}" y="{y + BOX_HEIGHT - 9}" height="3" rx="1.5"'
        f' width="{share * (BOX_WIDTH - 24):.1f}"></rect>'
        f'<text class="name" x="{x + 12}" y="{y + 21}">{escape(_fit(name, 22))}</text>'
        f'<text x="{x + 12}" y="{y + 39}">{escape(_fit(found, 28))}</text></g>'
    )
    return drawn if link is None else f'<a href="{escape(link)}">{drawn}</a>'


def _last(metric: str) -> str:
    return metric.rpartition(".")[2].replace("_", " ")


def _fit(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}\N{HORIZONTAL ELLIPSIS}"


SHARES = (
    ("data_wait_share", "waiting for data"),
    ("communication_share", "exchanging gradients"),
    ("checkpoint_stall_share", "saving checkpoints"),
    ("pipeline_wait_share", "waiting for other stages"),
)
"""(field of a record, title), from the bottom to the top of the stack."""


def shares_chart(metrics: Sequence[Record]) -> str:
    """Return the HTML of the stacked shares; empty where fewer than two shares are logged.

    Args:
        metrics: Logged records in the order of the steps.
    """
    known = [(name, title) for name, title in SHARES if any(name in record for record in metrics)]
    if len(known) < 2 or len(metrics) < 2:
        return ""
    parts = buckets(len(metrics))
    steps = [float(metrics[part[-1]]["step"]) for part in parts]
    if steps[-1] <= steps[0]:
        return ""
    layers = [[_mean(metrics, part, name) for part in parts] for name, _ in known]
    heights = [
        [sum(column[: i + 1]) for i in range(len(known))] for column in zip(*layers, strict=True)
    ]
    top = min(1.0, max(0.02, 1.06 * max(column[-1] for column in heights)))
    x, y = linear_scale(steps[0], steps[-1]), linear_scale(0.0, top)
    areas, below = [], [0.0] * len(steps)
    for layer in range(len(known)):
        above = [column[layer] for column in heights]
        edge = [*zip(steps, above, strict=True), *reversed([*zip(steps, below, strict=True)])]
        path = "L".join(f"{x(step) * WIDTH:.1f},{(1 - y(v)) * HEIGHT:.1f}" for step, v in edge)
        areas.append(f'<path class="share-{layer}" d="M{path}Z"/>')
        below = above
    labels = "".join(
        f'<span class="y" style="bottom:{100 * y(value):.2f}%"><i></i>'
        f"{escape(short(100 * value))} %</span>"
        for value in ticks(0.0, top)
    ) + "".join(
        f'<span class="x" style="left:{100 * x(value):.2f}%">{escape(short(value))}</span>'
        for value in ticks(steps[0], steps[-1], 5)
        if value == int(value) and 0.03 < x(value) < 0.97
    )
    legend = " ".join(
        f'<small><i class="share-{i}"></i>{escape(title)} {100 * layers[i][-1]:.1f} %</small>'
        for i, (_, title) in enumerate(known)
    )
    return f"""<figure class="card chart shares">
<figcaption><span>where the time goes</span><span>{legend}</span></figcaption>
<div class="plot" role="img" aria-label="shares of the time over the steps">
{labels}
<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" aria-hidden="true">
{"".join(areas)}</svg></div></figure>"""


def _mean(metrics: Sequence[Record], part: range, name: str) -> float:
    values = [number_of(metrics[i].get(name)) or 0.0 for i in part]
    return sum(values) / len(values)
