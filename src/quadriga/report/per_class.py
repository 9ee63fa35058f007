"""How sure an accuracy is, what was right of each class, and what was taken for what."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from quadriga.engine.logs.results import EvaluationRecord

_Z = 1.959964
"""Quantile of the normal distribution for intervals of 95 %."""
ACCURACIES = ("top1", "top5", "accuracy", "accuracy_5")
"""Numbers that are shares of the test samples."""


def wilson(share: float, samples: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson, 1927): never beyond 0 and 1.

    Args:
        share: Of successes, 0 to 1.
        samples: Number of trials, at least 1.
    """
    spread = _Z**2 / samples
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / samples + spread / (4 * samples)) / (1 + spread)
    return middle - half, middle + half


def samples_of(record: EvaluationRecord) -> int | None:
    """Return the number of test samples that a record's accuracies are shares of, if known."""
    for found in (record.details.get("test_samples"), record.details.get("samples")):
        if isinstance(found, int) and found > 0:
            return found
    return None


def interval(name: str, percent: float, samples: int | None) -> str:
    """Return ``93.1 to 98.2 %``: the 95 % interval of an accuracy; empty for other numbers."""
    if samples is None or name not in ACCURACIES or not 0 <= percent <= 100:
        return ""
    low, high = wilson(percent / 100, samples)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def class_tables(record: EvaluationRecord) -> str:
    """Return the accuracy of each class, the worst first, and the confusion matrix, folded."""
    known = record.details.get("per_class")
    try:
        return _tables(known, escape(record.kind.replace("_", " "))) if known else ""
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        return ""  # what another revision or a stranger has written


def _tables(known: dict[str, Any], title: str) -> str:
    classes = list(zip(known["names"], known["samples"], known["correct"], strict=True))
    shown = [(c / n, str(name), int(n), int(c)) for name, n, c in classes if n]
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{correct} of {samples}</td>'
        f'<td class="n"><b>{100 * share:.1f} %</b></td>'
        f'<td class="n">{interval("accuracy", 100 * share, samples)}</td></tr>'
        for share, name, samples, correct in sorted(shown)
    )
    absent = [escape(str(name)) for name, samples, _ in classes if not samples]
    note = f"<p>No samples of: {', '.join(absent)}.</p>" if absent else ""
    table = f"""<div class="card scroll"><table><thead><tr><th>class</th><th class="n">right</th>
<th class="n">accuracy</th><th class="n">95 % interval</th></tr></thead><tbody>{rows}</tbody>
</table></div>{note}"""
    return (
        f"<details><summary>Accuracy of each class, {title}</summary>{table}</details>"
        f"{_confusion(known, title)}"
    )


def _confusion(known: dict[str, Any], title: str) -> str:
    matrix = known.get("confusion")
    if not matrix:
        return ""
    names = [escape(str(name)) for name in known["names"]]
    head = "".join(f'<th class="n">{name}</th>' for name in names)
    rows = "".join(
        f"<tr><th>{name}</th>"
        + "".join(f'<td class="n">{_cell(int(n), at == place)}</td>' for at, n in enumerate(row))
        + "</tr>"
        for place, (name, row) in enumerate(zip(names, matrix, strict=True))
    )
    return f"""<details><summary>Confusion matrix, {title}</summary>
<div class="card scroll"><table><thead><tr><th>class, predicted as</th>{head}</tr></thead>
<tbody>{rows}</tbody></table></div></details>"""


def _cell(count: int, is_right: bool) -> str:
    return f"<b>{count}</b>" if is_right else str(count or "\N{MIDDLE DOT}")
