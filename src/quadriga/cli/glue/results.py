"""The results of ``quadriga glue``: collected, as JSON, as Markdown and as a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quadriga.data.text.glue.tasks import GlueTask
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import metrics_at
from quadriga.errors import UserError
from quadriga.files import write_text

SCORE = "score"
_TITLES = {"mcc": "Matthews", "f1": "F1", "pearson": "Pearson", "spearman": "Spearman"}

Found = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Task -> seed -> name of a metric -> value."""


def metrics_of(run: Path, step: int) -> dict[str, float]:
    """Return the GLUE metrics of a run after `step` steps; none where it has not been evaluated."""
    found = metrics_at(RunDirectory(run).report, step)
    return {n.removeprefix("glue."): v for n, v in found.items() if n.startswith("glue.")}


def summary(source: str, seeds: Sequence[int], tasks: Sequence[GlueTask], found: Found) -> Any:
    """Return the results as plain JSON values.

    Args:
        source: Name of the model that was fine-tuned.
        seeds: The requested seeds.
        tasks: The requested tasks.
        found: The metrics so far.
    """
    described = {}
    for task in tasks:
        by_seed = found.get(task.name, {})
        names = list(next(iter(by_seed.values()), {}))
        described[task.name] = {
            name: _spread({seed: metrics[name] for seed, metrics in by_seed.items()})
            for name in names
        }
    means = [task[SCORE]["mean"] for task in described.values() if SCORE in task]
    missing = [f"{t.name} seed {s}" for t in tasks for s in seeds if s not in found.get(t.name, {})]
    return {
        "source": source,
        "seeds": list(seeds),
        "tasks": described,
        "average": {
            "of": [name for name, task in described.items() if SCORE in task],
            "score": statistics.fmean(means) if means else None,
        },
        "missing": missing,
    }


def _spread(values: Mapping[int, float]) -> dict[str, Any]:
    several = list(values.values())
    return {
        "mean": statistics.fmean(several),
        # Sample standard deviation (n - 1), which one value does not have.
        "deviation": statistics.stdev(several) if len(several) > 1 else None,
        "by_seed": {str(seed): value for seed, value in values.items()},
    }


def rows_of(summed: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the table's rows: task, finished seeds, score, metrics; all values times 100."""
    rows: list[tuple[str, ...]] = []
    for task, metrics in summed["tasks"].items():
        if not metrics:
            rows.append((task, "0", "-", ""))
            continue
        shown = ", ".join(
            f"{_title(name)} {_shown(value)}" for name, value in metrics.items() if name != SCORE
        )
        score = metrics[SCORE]
        rows.append((task, str(len(score["by_seed"])), _shown(score), shown))
    return rows


def average_line(summed: Mapping[str, Any]) -> str:
    """Return the sentence on the average score."""
    average = summed["average"]
    if average["score"] is None:
        return "no task has a result yet"
    count = len(average["of"])
    which = f"of these {count} tasks' scores" if count > 1 else "of this one task's score"
    return (
        f"average {which} on the development sets: {average['score']:.2f} "
        "(the benchmark's own is of its test sets)"
    )


def markdown(summed: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    seeds = ", ".join(map(str, summed["seeds"]))
    lines = [
        f"# GLUE: {summed['source']}",
        "",
        f"Development sets, times 100; mean and standard deviation over the seeds {seeds}.",
        "",
        "| task | seeds | score | metrics |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows_of(summed)),
        "",
        f"{average_line(summed)[:1].upper()}{average_line(summed)[1:]}.",
    ]
    if summed["missing"]:
        lines += ["", f"Not run yet: {', '.join(summed['missing'])}."]
    return "\n".join(lines) + "\n"


def write_results(folder: Path, summed: Mapping[str, Any]) -> None:
    """Write ``glue.json`` and ``glue.md``.

    Raises:
        UserError: A file cannot be written.
    """
    try:
        write_text(folder / "glue.json", json.dumps(summed, indent=2) + "\n")
        write_text(folder / "glue.md", markdown(summed))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; make room") from error


def _shown(value: Mapping[str, Any]) -> str:
    spread = value["deviation"]
    return f"{value['mean']:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")


def _title(name: str) -> str:
    metric, _, part = name.partition("_")
    return " ".join([_TITLES.get(metric, metric), *([part] if part else [])])
