"""The curves of a run as one PNG, for a README or a slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quadriga.report.charts import value_range
from quadriga.report.series import Curve, envelope

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCENT, FAINT, GREY = "#3b5bdb", "#b7c3f3", "#5c6270"
COLUMNS = 3


def save_curves(curves: Sequence[Curve], title: str, path: Path) -> None:
    """Draw every curve in a panel of its own.

    Args:
        curves: At least one.
        title: Stands above the panels.
        path: Where the PNG goes, whatever its suffix.

    Raises:
        OSError: It cannot be written.
    """
    columns = min(COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    # Imported here: it takes half a second, and every process of a run knows this module.
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
