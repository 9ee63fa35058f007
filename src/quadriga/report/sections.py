"""The parts of the report beside curves and evaluation: header, config, environment."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from datetime import datetime
from html import escape
from typing import Any

from quadriga.formatting import count, duration
from quadriga.report.evaluation_table import plain, rows_of
from quadriga.report.run_files import RunFiles, mapping_of, number_of
from quadriga.report.series import short


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
    """Return what is missing or damaged, as a list; empty when nothing is."""
    if not run.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return f'<ul class="notes">{items}</ul>'


def config_section(run: RunFiles) -> str:
    """Return the resolved config as a table that can be searched, with where values came from."""
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
    """Return the command line of the run and what it was run on."""
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
    """Return the time spent in optimizer steps, from the mean step time of each logged interval."""
    total, previous = 0.0, 0.0
    for record in run.metrics:
        step, seconds = float(record["step"]), number_of(record.get("step_seconds")) or 0.0
        total += seconds * (step - previous)
        previous = step
    return total


def _tiles(run: RunFiles) -> Iterable[tuple[str, str, str, bool]]:
    """Yield (title, value, note, whether it leads) of each figure that is known."""
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
