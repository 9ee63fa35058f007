"""The sections of a run's report other than the curves."""

from __future__ import annotations

import base64
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from quadriga.engine.logs.results import EvaluationRecord
from quadriga.formatting import count, duration, reading
from quadriga.report.per_class import class_tables, interval, samples_of
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
    "nmi": "normalised mutual information",
    "adjusted rand": "adjusted Rand index",
    "glue": "GLUE",
    "mcc": "Matthews x 100",
    "f1": "F1",
    "pearson": "Pearson x 100",
    "spearman": "Spearman x 100",
}


@dataclass(frozen=True)
class Row:
    """One metric of one protocol."""

    protocol: str
    name: str
    value: float
    """The value; an accuracy is in percent."""
    random: float | None
    """The same metric of the encoder before training."""
    details: dict[str, Any]
    interval: str = ""
    """The 95 % confidence interval of an accuracy; empty for other metrics."""

    @property
    def is_percent(self) -> bool:
        """Whether the value is a percentage (top1, top5, accuracy)."""
        return reading(f"{self.protocol}.{self.name}")[1] == "%"

    @property
    def is_of_hundred(self) -> bool:
        """Whether the largest value is 100: a percentage, or a correlation times 100."""
        return self.is_percent or self.protocol == "glue"


def rows_of(run: RunFiles) -> list[Row]:
    """Return every number of the run's own protocols; ``x_random`` is the baseline of ``x``."""
    return [row for record in own_records(run) for row in _rows_of_record(record)]


def own_records(run: RunFiles) -> list[EvaluationRecord]:
    """Return what the run's own protocols found of the last step that they evaluated."""
    own = [record for record in run.evaluations if record.own]
    last = max((record.step for record in own), default=0)
    return list({record.kind: record for record in own if record.step == last}.values())


def other_records(run: RunFiles) -> list[EvaluationRecord]:
    """Return what was evaluated with other values than the run's: the last of each."""
    found = {}
    for record in run.evaluations:
        if not record.own:
            found[record.step, record.kind, _other_values(record)] = record
    return list(found.values())


def _other_values(record: EvaluationRecord) -> str:
    return ", ".join(f"{name} = {plain(value)}" for name, value in record.overrides.items())


def _rows_of_record(record: EvaluationRecord) -> Iterator[Row]:
    for name, value in record.metrics.items():
        number = number_of(value)
        is_baseline = name.endswith("_random") and name.removesuffix("_random") in record.metrics
        if number is not None and not is_baseline:
            factor, _ = reading(f"{record.kind}.{name}")
            random = number_of(record.metrics.get(f"{name}_random"))
            yield Row(
                protocol=record.kind,
                name=name,
                value=number * factor,
                random=None if random is None else random * factor,
                details=record.details,
                interval=interval(name, number * factor, samples_of(record)),
            )


def evaluation_section(run: RunFiles) -> str:
    """Return the tables of the run's own protocols, or a sentence when there is none."""
    own = own_records(run)
    if not own:
        return '<p class="empty">No evaluation by the run\'s own protocols yet.</p>'
    return _records(own, f"after step {own[0].step:,}")


def other_evaluations_section(run: RunFiles) -> str:
    """Return what was evaluated with other values, each under those; empty when nothing was."""
    return "".join(
        f'<p class="subtitle lead-in">step {record.step:,}, <code>'
        f"{escape(_other_values(record))}</code></p>{_records([record], _when(record))}"
        f"{_figures(run, [record])}"
        for record in other_records(run)
    )


def _when(record: EvaluationRecord) -> str:
    return "" if record.time is None else f"on {_date(record.time)}"


def _records(records: Sequence[EvaluationRecord], caption: str) -> str:
    """Return a table of records and how each was measured."""
    rows = [row for record in records for row in _rows_of_record(record)]
    compared = any(row.random is not None for row in rows)
    body = "".join(_table_row(row, compared) for row in rows)
    details = "".join(_details(record) for record in records)
    if not rows:
        return details
    columns = ("this encoder", "random encoder", "difference") if compared else ("value",)
    values = "".join(f'<th class="n">{column}</th>' for column in columns)
    return f"""<div class="card scroll"><table class="numbers">
<thead><tr><th>protocol {escape(caption)}</th><th>number</th>{values}<th></th></tr></thead>
<tbody>{body}</tbody></table></div>{details}"""


def _table_row(row: Row, compared: bool) -> str:
    """Return a row; `compared` says whether the table has columns for the random encoder."""
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
    sure = f"<br><small>95 %: {row.interval}</small>" if row.interval else ""
    return (
        f"<tr><td>{escape(_label(row.protocol))}</td><td>{escape(_label(row.name))}</td>"
        f'<td class="n"><b>{_shown(row, row.value)}{suffix}</b>{sure}</td>{beside}'
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


def _label(name: str) -> str:
    words = name.replace("_", " ")
    return _NAMES.get(words, words)


def _details(record: EvaluationRecord) -> str:
    samples = mapping_of(record.data.get("samples")).items()
    known = {
        **{name: value for name, value in record.protocol.items() if name != "kind"},
        **(record.settings or {}),
        **{f"{split} samples": number for split, number in samples},
        **{name: value for name, value in record.details.items() if name != "per_class"},
    }
    tables = class_tables(record)
    if not known:
        return tables
    listed = "".join(
        f"<dt>{escape(_label(str(name)))}</dt><dd>{escape(plain(value))}</dd>"
        for name, value in known.items()
    )
    title = escape(_label(record.kind))
    how = f"<details><summary>How {title} was measured</summary><dl>{listed}</dl></details>"
    return how + tables


def plain(value: Any) -> str:
    """Return a JSON value as readable text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return short(value)
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return "none" if value is None else str(value)


def pictures_section(run: RunFiles) -> str:
    """Return the pictures of the run's own protocols, embedded; empty when there is none."""
    return _figures(run, own_records(run))


def _figures(run: RunFiles, records: Sequence[EvaluationRecord]) -> str:
    report = run.folder / "report"
    return "".join(
        _figure(report, report / (record.folder or ""), str(name), str(caption))
        for record in records
        for name, caption in record.pictures.items()
    )


def _figure(report: Path, folder: Path, name: str, caption: str) -> str:
    kind = _IMAGE_TYPES.get(Path(name).suffix.lower())
    # What lies elsewhere could be any file of the machine, in a page that is passed on.
    is_inside = folder.resolve().is_relative_to(report.resolve())
    if kind is None or Path(name).name != name or not is_inside:
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


def header(run: RunFiles) -> str:
    """Return the title, the state of the run and the tiles with its main figures."""
    kinds = [
        mapping_of(run.config.get(part)).get("kind") for part in ("objective", "model", "data")
    ]
    line = " · ".join(escape(str(kind)) for kind in kinds if kind)
    started = _date(run.environment.get("started"))
    subtitle = " · ".join(part for part in (line, escape(started)) if part)
    tiles = "".join(_tile(*tile) for tile in _tiles(run))
    return f"""<header><p class="eyebrow">Quadriga · run report</p>
<h1>{escape(run.name)} {_status(run)}</h1><p class="subtitle">{subtitle}</p>{_progress_bar(run)}
<div class="tiles">{tiles}</div></header>"""


def _tile(title: str, value: str, note: str, lead: bool) -> str:
    kind = "tile lead" if lead else "tile"
    size = ' class="long"' if len(value) > 14 else ""
    return (
        f'<div class="{kind}"><span>{escape(title)}</span>'
        f"<b{size}>{escape(value)}</b><small>{escape(note)}</small></div>"
    )


def notes(run: RunFiles) -> str:
    """Return the notes on missing or damaged files as a list; empty when there are none."""
    if not run.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return f'<ul class="notes">{items}</ul>'


def config_section(run: RunFiles) -> str:
    """Return the resolved config as a searchable table of keys, values and sources."""
    rows = run.config_rows()
    if not rows:
        return '<p class="empty">The config is missing.</p>'
    changed = sum(source == "command line" for _, _, source in rows)
    body = "".join(
        f"<tr><td><code>{escape(path)}</code></td><td><code>{escape(plain(value))}</code></td>"
        f'<td><span class="source {_source_class(source)}">{escape(source)}</span></td></tr>'
        for path, value, source in rows
    )
    summary = f"{len(rows)} values, {changed} of them set on the command line"
    return f"""<details class="config"><summary>{summary}</summary>
<input type="search" placeholder="Filter by key, value or source" aria-label="Filter the config">
<div class="card scroll"><table><thead><tr><th>key</th><th>value</th><th>source</th></tr></thead>
<tbody>{body}</tbody></table></div></details>"""


def environment_section(run: RunFiles) -> str:
    """Return the environment as a table."""
    if not run.environment:
        return '<p class="empty">The environment has not been written down.</p>'
    rows = "".join(
        f"<tr><td>{escape(str(name).replace('_', ' '))}</td>"
        f"<td><code>{escape(_flat(value))}</code></td></tr>"
        for name, value in run.environment.items()
        if name != "command"
    )
    return f"""<details><summary>Versions, device and ranks</summary>
<div class="card scroll"><table><tbody>{rows}</tbody></table></div></details>"""


def reproduce_section(run: RunFiles) -> str:
    """Return the run's command line, versions and seed."""
    command = run.environment.get("command")
    if isinstance(command, list):
        command = " ".join(str(part) for part in command)
    if not command:
        return '<p class="empty">The command line has not been written down.</p>'
    facts = [
        f"{name} {run.environment[key]}"
        for name, key in (("quadriga", "quadriga"), ("revision", "revision"), ("torch", "torch"))
        if run.environment.get(key)
    ]
    if "seed" in run.config:
        facts.append(f"seed {run.config['seed']}")
    return (
        f'<div class="command"><pre>{escape(str(command))}</pre>'
        f'<button type="button" class="copy">copy</button></div>'
        f'<p class="subtitle">{escape(" · ".join(facts))}</p>'
    )


def training_seconds(run: RunFiles) -> float:
    """Return the seconds spent in optimizer steps: sums of mean step time times steps."""
    total, previous = 0.0, 0.0
    for record in run.metrics:
        step, seconds = float(record["step"]), number_of(record.get("step_seconds")) or 0.0
        total += seconds * (step - previous)
        previous = step
    return total


def _tiles(run: RunFiles) -> Iterable[tuple[str, str, str, bool]]:
    """Yield (title, value, note, whether it is highlighted) of each known figure."""
    accuracies = [row for row in rows_of(run) if row.name == "top1"]
    for row in sorted(accuracies, key=lambda row: row.protocol != "linear_probe"):
        note = "" if row.random is None else f"random encoder {row.random:.2f} %"
        name = {"knn": "k-NN"}.get(row.protocol, row.protocol.replace("_", " "))
        yield f"{name} top-1", f"{row.value:.2f} %", note, row.protocol == "linear_probe"
    for row in rows_of(run):
        if (row.protocol, row.name) == ("held_out", "accuracy"):
            yield "held-out accuracy", f"{row.value:.2f} %", "top-1", True
        if (row.protocol, row.name) == ("glue", "score"):
            yield "GLUE score", f"{row.value:.2f}", str(row.details.get("task", "")), True
    if run.metrics:
        yield from _training_tiles(run)
    parameters = number_of(run.environment.get("parameters"))
    if parameters is not None:
        yield "parameters", count(parameters), f"{parameters:,.0f}", False
    device = run.environment.get("device_name") or run.environment.get("device")
    if device:
        ranks = number_of(run.environment.get("world_size")) or 1
        cores = run.environment.get("cores")
        note = f"{ranks:.0f} ranks" if ranks > 1 else "1 process"
        yield "device", str(device), f"{note}, {cores} cores" if cores else note, False


def _training_tiles(run: RunFiles) -> Iterable[tuple[str, str, str, bool]]:
    last = run.metrics[-1]
    loss, first = number_of(last.get("loss")), number_of(run.metrics[0].get("loss"))
    if loss is not None:
        note = "" if first is None else f"from {short(first)}"
        yield "loss", short(loss), note, False
    epoch = number_of(last.get("epoch"))
    note = "" if epoch is None else f"{epoch:,.4g} epochs"
    yield "steps", f"{float(last['step']):,.0f}", note, False
    eta = number_of(last.get("eta_seconds"))
    done = run.progress is not None and run.progress >= 1
    left = f"{duration(eta)} left" if eta and not done else "in optimizer steps"
    yield "training time", duration(training_seconds(run)), left, False
    rates = [number_of(r.get("samples_per_second")) for r in run.metrics]
    known = [rate for rate in rates if rate is not None]
    if known:
        yield "throughput", f"{short(round(statistics.median(known)))}", "samples/s, median", False


def _status(run: RunFiles) -> str:
    progress = run.progress
    if progress is None:
        return ""
    if progress >= 1:
        return '<span class="pill done">finished</span>'
    return f'<span class="pill">{math.floor(100 * progress)} % done</span>'


def _progress_bar(run: RunFiles) -> str:
    if run.progress is None or run.progress >= 1:
        return ""
    return f'<div class="bar whole"><i style="width:{100 * run.progress:.1f}%"></i></div>'


def _date(value: Any) -> str:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return "" if value is None else str(value)
    zone = moment.strftime(" %Z") if moment.tzinfo else ""
    return f"{moment:%d %B %Y, %H:%M}{zone}"


def _source_class(source: str) -> str:
    return {"command line": "set", "default": "default"}.get(source, "recipe")


def _flat(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else plain(value)
