"""The picture of a comparison: what each arm reached beside what it cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes


@dataclass(frozen=True)
class Row:
    """One arm."""

    arm: str
    accuracies: Sequence[float]
    """Per cent, one for each seed."""
    before: Sequence[float]
    """The same before fine-tuning, where there is such a thing."""
    flops: float
    """Over end-to-end training's, as are the next two."""
    path: float
    memory: float
    """Of a module's run where there are modules, else of the largest run."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw one line for each arm, the best on top: accuracy left, costs right.

    Args:
        rows: The arms.
        path: A PNG file; its folder is made.
    """
    rows = sorted(rows, key=lambda row: statistics.mean(row.accuracies))
    height = 1.2 + 0.36 * len(rows)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, height), sharey=True, layout="constrained"
    )
    _accuracies(left, rows)
    _costs(right, rows)
    left.set_yticks(range(len(rows)), [row.arm for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"picture: {path}")


def _accuracies(axes: Axes, rows: Sequence[Row]) -> None:
    for y, row in enumerate(rows):
        axes.plot(row.accuracies, [y] * len(row.accuracies), "o", color="0.65", markersize=4)
        mean = statistics.mean(row.accuracies)
        axes.plot([mean], [y], "|", color="C0", markersize=16, markeredgewidth=2.5)
        label = f"{mean:.1f}"
        if row.before:
            label += f" (assembled: {statistics.mean(row.before):.1f})"
        axes.annotate(label, (max(row.accuracies), y), (7, -3), textcoords="offset points", size=8)
    axes.set_xlabel("test accuracy (%): seeds and mean")
    axes.margins(x=0.3)
    axes.grid(axis="x", alpha=0.3)


def _costs(axes: Axes, rows: Sequence[Row]) -> None:
    levels = range(len(rows))
    kinds = (
        ("FLOPs", [row.flops for row in rows], "s"),
        ("critical path", [row.path for row in rows], "o"),
        ("memory (of a module)", [row.memory for row in rows], "^"),
    )
    for label, costs, marker in kinds:
        axes.plot(costs, levels, marker, label=label, alpha=0.8)
    axes.axvline(1.0, color="0.5", linewidth=1)
    axes.set_xlabel("cost / end to end")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
