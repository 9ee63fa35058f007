"""Where the time of a run goes: the shares of its steps' time, stacked, as one chart."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from quadriga.report.charts import HEIGHT, WIDTH, linear_scale
from quadriga.report.run_files import Record, number_of
from quadriga.report.series import buckets, short, ticks

SHARES = (
    ("data_wait_share", "waiting for data"),
    ("communication_share", "exchanging gradients"),
    ("checkpoint_stall_share", "saving checkpoints"),
    ("pipeline_wait_share", "waiting for other stages"),
)
"""Fields of a record, from the bottom to the top of the stack, and what they are called."""


def shares_chart(metrics: Sequence[Record]) -> str:
    """Return the HTML of the stacked shares; empty where no more than the wait for data is known.

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
