"""The report of a run: one HTML file that needs no network, and the curves as a picture."""

from __future__ import annotations

import os
from pathlib import Path

from quadriga.errors import UserError
from quadriga.files import write_text
from quadriga.report.charts import chart, save_curves, shares_chart
from quadriga.report.page import page
from quadriga.report.run_files import RunFiles, read_run
from quadriga.report.sections import (
    config_section,
    environment_section,
    evaluation_section,
    header,
    notes,
    other_evaluations_section,
    pictures_section,
    reproduce_section,
)
from quadriga.report.series import Curve, curves_of


def write_report(run_dir: Path) -> Path:
    """Write ``report/index.html`` and ``report/curves.png`` of a run, in progress or finished.

    Args:
        run_dir: The run directory.

    Returns:
        The path of the HTML file.

    Raises:
        UserError: The folder holds no run, or the report cannot be written.
    """
    run = read_run(run_dir)
    curves = curves_of(run.metrics, run.events, run.evaluations)
    folder = run_dir / "report"
    try:
        folder.mkdir(exist_ok=True)
        write_text(folder / "index.html", render(run, curves))
        if curves:
            beside = folder / ".curves.png.partial"
            save_curves(curves, run.name, beside)
            os.replace(beside, folder / "curves.png")
    except OSError as error:
        raise UserError(
            f"the report folder {folder} must be writable, but: {error.strerror or error}; free"
            " space or change its permissions"
        ) from error
    return folder / "index.html"


def render(run: RunFiles, curves: list[Curve]) -> str:
    """Return the whole page as HTML.

    Args:
        run: The run's files.
        curves: The run's curves.
    """
    drawn = "".join(chart(curve, str(i)) for i, curve in enumerate(curves))
    drawn += shares_chart(run.metrics)
    sections = [
        ("Evaluation", evaluation_section(run)),
        ("Evaluated otherwise", other_evaluations_section(run)),
        ("Pictures", pictures_section(run)),
        ("Curves", _curves(drawn)),
        ("Reproduce", reproduce_section(run)),
        ("Config", config_section(run)),
        ("Environment", environment_section(run)),
    ]
    body = "\n".join(
        f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content
    )
    title = f"{run.name} \N{MIDDLE DOT} Quadriga run report"
    return page(title, f"{header(run)}{notes(run)}\n{body}")


def _curves(drawn: str) -> str:
    if not drawn:
        return '<p class="empty">No step has been logged yet.</p>'
    return f"""<p class="subtitle lead-in">Over the optimizer steps; faint: each logged step,
strong: moving average. Point at a curve to read it.</p><div class="grid">{drawn}</div>"""
