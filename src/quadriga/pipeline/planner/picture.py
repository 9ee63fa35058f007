"""Pictures of schedules: time from left to right, one row per stage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quadriga.errors import UserError
from quadriga.pipeline.planner.timeline import Timeline
from quadriga.pipeline.schedules.actions import Backward, Forward, Update

FORWARD = ("#2f6fb7", "#8fbce6")
BACKWARD = ("#2e8b57", "#93cfa8")
"""Colours of passes with weights of an even and of an odd version."""
UPDATE = "#d9822b"
IDLE = "#f1f1ee"
NUMBERED = 160
"""Maximum number of passes in a row for which each shows the number of its micro-batch."""


def draw(path: Path, timelines: Sequence[tuple[str, Timeline]]) -> None:
    """Draw schedules below one another on one scale of time, as a PNG.

    Args:
        path: The file, which is written atomically.
        timelines: Title and timing of each schedule.

    Raises:
        UserError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [timeline.times.stages for _, timeline in timelines]
    height = sum(0.9 + 0.34 * stages for stages in rows) + 0.7
    figure = Figure(figsize=(12, height), layout="constrained")
    axes = figure.subplots(
        len(timelines), squeeze=False, sharex=True, height_ratios=[1 + stages for stages in rows]
    )[:, 0]
    longest = max(timeline.seconds for _, timeline in timelines)
    for axis, (title, timeline) in zip(axes, timelines, strict=True):
        _panel(axis, title, timeline, longest)
    unit = "ms" if longest < 1 else "s"
    factor = 1000 if unit == "ms" else 1
    axes[-1].xaxis.set_major_formatter(lambda value, _: f"{value * factor:g}")
    axes[-1].set_xlabel(f"time ({unit})")
    has_delay = any(_has_delay(timeline) for _, timeline in timelines)
    figure.legend(handles=_legend(has_delay), loc="outside lower center", ncols=6, frameon=False)
    beside = path.with_name(f".{path.name}.partial")
    try:
        # Without metadata that varies: the same plan gives the same file.
        FigureCanvasAgg(figure).print_png(beside, metadata={"Software": None})  # type: ignore[no-untyped-call]
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def _has_delay(timeline: Timeline) -> bool:
    return any(version < step for step, version in enumerate(timeline.version))


def _panel(axis: Any, title: str, timeline: Timeline, longest: float) -> None:
    stages = timeline.times.stages
    delayed = _has_delay(timeline)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_ylim(stages - 0.42, -0.58)
    axis.set_xlim(0, longest)
    axis.set_yticks(range(stages), [f"stage {s}" for s in range(stages)])
    axis.tick_params(length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    for stage in range(stages):
        axis.barh(stage, timeline.seconds, height=0.74, color=IDLE, linewidth=0)
        events = timeline.of_stage(stage)
        numbered = sum(isinstance(e.action, Forward) for e in events) * 2 <= NUMBERED
        for event in events:
            length = event.end - event.start
            if isinstance(event.action, (Forward, Backward)):
                colours = FORWARD if isinstance(event.action, Forward) else BACKWARD
                parity = timeline.version[event.action.step] % 2 if delayed else 0
                colour = colours[parity]
                axis.barh(
                    stage, length, left=event.start, height=0.74, color=colour, edgecolor="white",
                    linewidth=0.4,
                )  # fmt: skip
                if numbered and length > 0.006 * longest:
                    ink = "white" if parity == 0 else "#10324f"
                    axis.text(
                        event.start + length / 2, stage, str(event.action.micro), color=ink,
                        fontsize=6.5, ha="center", va="center", clip_on=True,
                    )  # fmt: skip
            elif isinstance(event.action, Update):
                _update(axis, stage, event.start, length, longest)


def _update(axis: Any, stage: int, start: float, length: float, longest: float) -> None:
    """Draw an update as a narrow bar below the passes, with which it may overlap."""
    width = max(length, 0.002 * longest)
    axis.barh(stage + 0.36, width, left=start, height=0.14, color=UPDATE, linewidth=0)


def _legend(has_delay: bool) -> list[Any]:
    from matplotlib.patches import Patch

    entries = [("forward", FORWARD[0]), ("backward", BACKWARD[0])]
    if has_delay:
        entries = [
            ("forward, even weight version", FORWARD[0]),
            ("forward, odd version", FORWARD[1]),
            ("backward, even version", BACKWARD[0]),
            ("backward, odd version", BACKWARD[1]),
        ]
    entries += [("update", UPDATE), ("idle", IDLE)]
    return [Patch(color=colour, label=label) for label, colour in entries]
