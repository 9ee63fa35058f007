"""What the evaluation protocols found: the table, the bars and the pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from quadriga.formatting import reading
from quadriga.report.run_files import RunFiles, mapping_of, number_of
from quadriga.report.series import short

_IMAGE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "knn": "k-NN",
    "glue": "GLUE",
    "mcc": "Matthews x 100",
    "f1": "F1",
    "pearson": "Pearson x 100",
    "spearman": "Spearman x 100",
}


@dataclass(frozen=True)
class Row:
    """One number of one protocol."""

    protocol: str
    name: str
    value: float
    """In percent where it is an accuracy."""
    random: float | None
    """The same number of the encoder before training."""
    details: dict[str, Any]

    @property
    def is_percent(self) -> bool:
        """Whether the value is a share in percent (top1, top5, accuracy)."""
        return reading(f"{self.protocol}.{self.name}")[1] == "%"

    @property
    def is_of_hundred(self) -> bool:
        """Whether the value ends at 100: a share in percent, or a correlation times 100."""
        return self.is_percent or self.protocol == "glue"


def rows_of(run: RunFiles) -> list[Row]:
    """Return every number of every protocol; ``x_random`` becomes the baseline of ``x``."""
    return [row for result in _results(run) for row in _rows_of_result(result)]


def _results(run: RunFiles) -> list[dict[str, Any]]:
    results = run.evaluation.get("results")
    return [mapping_of(result) for result in results] if isinstance(results, list) else []


def _rows_of_result(result: dict[str, Any]) -> Iterator[Row]:
    numbers = mapping_of(result.get("numbers"))
    for name, value in numbers.items():
        number = number_of(value)
        is_baseline = name.endswith("_random") and name.removesuffix("_random") in numbers
        if number is not None and not is_baseline:
            protocol = str(result.get("protocol", "unnamed"))
            factor, _ = reading(f"{protocol}.{name}")
            random = number_of(numbers.get(f"{name}_random"))
            yield Row(
                protocol=protocol,
                name=name,
                value=number * factor,
                random=None if random is None else random * factor,
                details=mapping_of(result.get("details")),
            )


def evaluation_section(run: RunFiles) -> str:
    """Return the table of numbers, or a sentence when there is none."""
    rows = rows_of(run)
    if not rows:
        return '<p class="empty">No evaluation has been made yet.</p>'
    compared = any(row.random is not None for row in rows)
    body = "".join(_table_row(row, compared) for row in rows)
    step = number_of(run.evaluation.get("step"))
    caption = f"after step {step:,.0f}" if step is not None else ""
    details = "".join(_details(result) for result in _results(run))
    columns = ("this encoder", "random encoder", "difference") if compared else ("value",)
    values = "".join(f'<th class="n">{column}</th>' for column in columns)
    return f"""<div class="card scroll"><table class="numbers">
<thead><tr><th>protocol {caption}</th><th>number</th>{values}<th></th></tr></thead>
<tbody>{body}</tbody></table></div>{details}"""


def _table_row(row: Row, compared: bool) -> str:
    """Return a row; `compared`: whether the table has columns of the random encoder."""
    suffix = " %" if row.is_percent else ""
    baseline = difference = "\N{EN DASH}"
    tone = ""
    if row.random is not None:
        gap = row.value - row.random
        baseline = f"{_shown(row, row.random)}{suffix}"
        sign = "+" if gap > 0 else "\N{MINUS SIGN}" if gap < 0 else ""
        difference = f"{sign}{_shown(row, abs(gap))}{' points' if row.is_percent else ''}"
        if row.is_percent:
            tone = " good" if gap > 0 else " bad" if gap < 0 else ""
    beside = f'<td class="n">{baseline}</td><td class="n{tone}">{difference}</td>'
    if not compared:
        beside = ""
    return (
        f"<tr><td>{escape(_words(row.protocol))}</td><td>{escape(_words(row.name))}</td>"
        f'<td class="n"><b>{_shown(row, row.value)}{suffix}</b></td>{beside}'
        f'<td class="barcell">{_bar(row)}</td></tr>'
    )


def _bar(row: Row) -> str:
    if not row.is_of_hundred:
        return ""
    width = min(100.0, max(0.0, row.value))
    mark = ""
    if row.random is not None:
        left = min(100.0, max(0.0, row.random))
        mark = f'<u style="left:{left:.2f}%" title="random encoder"></u>'
    return f'<div class="bar"><i style="width:{width:.2f}%"></i>{mark}</div>'


def _shown(row: Row, value: float) -> str:
    return f"{value:.2f}" if row.is_of_hundred else escape(short(value))


def _words(name: str) -> str:
    words = name.replace("_", " ")
    return _NAMES.get(words, words)


def _details(result: dict[str, Any]) -> str:
    details = mapping_of(result.get("details"))
    if not details:
        return ""
    listed = "".join(
        f"<dt>{escape(_words(str(name)))}</dt><dd>{escape(plain(value))}</dd>"
        for name, value in details.items()
    )
    title = escape(_words(str(result.get("protocol", "unnamed"))))
    return f"<details><summary>How {title} was measured</summary><dl>{listed}</dl></details>"


def plain(value: Any) -> str:
    """Return a JSON value as a person would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return short(value)
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return "none" if value is None else str(value)


def pictures_section(run: RunFiles) -> str:
    """Return the pictures of the protocols, each embedded; empty when there is none."""
    figures = [
        _figure(run.folder / "report", str(name), str(caption))
        for result in _results(run)
        for name, caption in mapping_of(result.get("pictures")).items()
    ]
    return "".join(figures)


def _figure(folder: Path, name: str, caption: str) -> str:
    kind = _IMAGE_TYPES.get(Path(name).suffix.lower())
    # A name with a folder in it could embed any file of the machine in a page that is passed on.
    if kind is None or Path(name).name != name:
        return f'<p class="empty">Picture {escape(name)} is not an image in report/.</p>'
    try:
        data = base64.b64encode((folder / name).read_bytes()).decode("ascii")
    except OSError as error:
        reason = escape(error.strerror or str(error))
        return f'<p class="empty">Picture {escape(name)} cannot be read: {reason}.</p>'
    return (
        f'<figure class="card picture"><img alt="{escape(caption)}"'
        f' src="data:{kind};base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
