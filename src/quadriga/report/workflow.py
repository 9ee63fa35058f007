"""The report of a workflow: the graph, its runs, and their cost compared with the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from quadriga.engine.status import RunState
from quadriga.errors import UserError
from quadriga.files import write_text
from quadriga.formatting import bytes_, duration, flops, measured
from quadriga.report.charts import graph_picture
from quadriga.report.page import page
from quadriga.workflow.directory import Graph, WorkflowDirectory
from quadriga.workflow.graph import order_of

DASH = "\N{EN DASH}"


def write_workflow_report(directory: WorkflowDirectory) -> Path:
    """Write ``report/index.html`` of a workflow, in progress or finished.

    Args:
        directory: The workflow's work directory.

    Returns:
        The path of the HTML file.

    Raises:
        UserError: There is no workflow, or the report cannot be written.
    """
    graph = directory.read_graph()
    folder = directory.path / "report"
    states = directory.states(graph)
    ledger = directory.ledger(graph, states)
    links = {
        name: f"../{name}/report/index.html"
        for name in graph.nodes
        if (directory.run_of(name) / "report" / "index.html").is_file()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "index.html", render_workflow(graph, states, ledger, links))
    except OSError as error:
        raise UserError(
            f"the report folder {folder} must be writable, but: {error.strerror or error}; free "
            "space or change its permissions"
        ) from error
    return folder / "index.html"


def render_workflow(
    graph: Graph,
    states: Mapping[str, RunState],
    ledger: Mapping[str, Any],
    links: Mapping[str, str],
) -> str:
    """Return the whole page as HTML.

    Args:
        graph: The workflow.
        states: Node -> state of its run.
        ledger: The result of `WorkflowDirectory.ledger`.
        links: Node -> URL of its report.
    """
    done = sum(state.state == "finished" for state in states.values())
    kind = "pill done" if done == len(states) else "pill"
    head = f"""<header><p class="eyebrow">Quadriga \N{MIDDLE DOT} workflow report</p>
<h1>{escape(graph.name)} <span class="{kind}">{done} of {len(states)} runs finished</span></h1>
</header>"""
    sections = (
        ("Graph", graph_picture(graph.needs, states, graph.result, links)),
        ("Runs", _runs(graph, states, links)),
        ("Cost", _cost(ledger)),
        ("Cost of each run", _costs(graph, ledger)),
    )
    body = "\n".join(f"<section><h2>{t}</h2>{content}</section>" for t, content in sections)
    return page(f"{graph.name} \N{MIDDLE DOT} Quadriga workflow report", f"{head}\n{body}")


def _runs(graph: Graph, states: Mapping[str, RunState], links: Mapping[str, str]) -> str:
    rows = []
    for name in order_of(graph.needs):
        state, planned = states[name], graph.planned[name]
        shown = escape(name)
        if name in links:
            shown = f'<a href="{escape(links[name])}">{shown}</a>'
        metric, value = state.metric or "", DASH
        if state.value is not None:
            value = measured(metric, state.value)
        text = state.state if state.error is None else f"failed: {state.error}"
        rows.append(
            (
                shown,
                escape(", ".join(graph.needs[name]) or DASH),
                f'<span class="told">{escape(text)}</span>',
                f"{state.step:,} / {planned.total_steps:,}",
                f"{planned.parameters:,}",
                f"{planned.trainable_parameters:,}",
                f"{escape(_label(metric))} <b>{value}</b>",
            )
        )
    titles = ("run", "starts from", "state", "steps", "parameters", "trained", "found")
    return _table(titles, rows, numbers=(3, 4, 5, 6))


def _label(metric: str) -> str:
    return metric.replace("_", " ").replace(".", ": ")


def _cost(ledger: Mapping[str, Any]) -> str:
    reference = ledger["reference"]
    rows = [_cost_row(f"result: {ledger['result']['node']}", ledger["result"], reference)]
    rows += [_cost_row(name, known, reference) for name, known in ledger["others"].items()]
    if reference is not None:
        rows.append(("reference, not run", _flops(reference["flops"]), *[DASH] * 6))
    titles = (
        "model",
        "operations",
        "of the reference's",
        "device time, summed",
        "critical path",
        "memory of a rank",
        "start-up",
        "lost",
    )
    note = (
        "Operations: multiplications and additions of the forward and backward passes. Device time:"
        " summed over all ranks. Critical path: the longest chain of runs that wait for each other."
        " Start-up (imports, model, checkpoint) and steps that were made again after a kill (lost)"
        " are in neither."
    )
    table = _table(titles, rows, numbers=range(1, 8))
    return f'<p class="subtitle lead-in">{note}</p>{table}'


def _cost_row(
    title: str, cost: Mapping[str, Any], reference: Mapping[str, Any] | None
) -> tuple[str, ...]:
    ratio = DASH
    if reference is not None and cost["flops"] is not None and reference["flops"]:
        ratio = f"{cost['flops'] / reference['flops']:.3f}"
    memory = cost["memory_gib"]
    chain = " \N{RIGHTWARDS ARROW} ".join(cost["critical_path"])
    return (
        escape(title),
        _flops(cost["flops"]),
        ratio,
        duration(cost["device_seconds"]),
        f"<b>{duration(cost['critical_seconds'])}</b><br><small>{escape(chain)}</small>",
        DASH if memory is None else bytes_(memory * 2**30),
        duration(cost["start_up_seconds"]),
        duration(cost["lost_device_seconds"]),
    )


def _costs(graph: Graph, ledger: Mapping[str, Any]) -> str:
    rows = []
    for name in order_of(graph.needs):
        known = ledger["nodes"][name]
        memory = known["memory_gib"]
        rows.append(
            (
                escape(name),
                f"{_flops(known['flops'])} of {_flops(known['planned_flops'])}",
                duration(known["device_seconds"]),
                duration(known["seconds"]),
                duration(known["evaluation_seconds"]),
                DASH if memory is None else bytes_(memory * 2**30),
                str(known["attempts"]),
                f"{known['lost_steps']:,} steps, {duration(known['lost_device_seconds'])}",
            )
        )
    titles = (
        "run",
        "operations",
        "device time",
        "wall time",
        "of it evaluation",
        "memory of a rank",
        "attempts",
        "lost",
    )
    return _table(titles, rows, numbers=range(1, 8))


def _flops(value: float | None) -> str:
    return DASH if value is None else flops(value)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """Return a table of HTML cells; the columns `numbers` are aligned to the right."""

    def kind(place: int) -> str:
        return ' class="n"' if place in numbers else ""

    head = "".join(f"<th{kind(i)}>{escape(title)}</th>" for i, title in enumerate(titles))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"""<div class="card scroll"><table><thead><tr>{head}</tr></thead>
<tbody>{body}</tbody></table></div>"""
