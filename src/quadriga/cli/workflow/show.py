"""What ``quadriga run`` and ``quadriga status`` show: rows of text, from states and ledgers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table

from quadriga.engine.logs.status import RunState
from quadriga.engine.workflow_graph import levels_of, order_of
from quadriga.formatting import bytes_, duration, flops, measured
from quadriga.workflow.directory import Graph

UNKNOWN = "-"
_WIDTH = 200
_COLUMNS = ("node", "state", "steps", "found", "time", "left")
_RIGHT = ("steps", "time", "left")


def waits_for(graph: Graph, states: Mapping[str, RunState], name: str) -> list[str]:
    """Return the nodes that a node waits for: the failed ones, if there are any."""
    left = [other for other in graph.needs[name] if states[other].state != "finished"]
    return [other for other in left if states[other].state == "failed"] or left


def state_text(graph: Graph, states: Mapping[str, RunState], name: str) -> str:
    """Return a node's state in words."""
    state = states[name]
    if state.state == "failed":
        return f"failed: {state.error}"
    if state.state != "waiting":
        return state.state
    others = waits_for(graph, states, name)
    failed = bool(others) and states[others[0]].state == "failed"
    tail = " (failed)" if failed else ""
    return f"waits for {', '.join(others)}{tail}" if others else "ready"


def rows_of(graph: Graph, states: Mapping[str, RunState]) -> list[tuple[str, ...]]:
    """Return one row per node, after all that it needs and indented by it."""
    levels = levels_of(graph.needs)
    return [
        (
            f"{'  ' * levels[name]}{name}{' *' if name == graph.result else ''}",
            state_text(graph, states, name),
            *figures(states[name]),
        )
        for name in order_of(graph.needs)
    ]


def figures(state: RunState) -> tuple[str, str, str, str]:
    """Return the steps, the number, the time and what is left of a run."""
    total = UNKNOWN if state.total_steps is None else str(state.total_steps)
    found = UNKNOWN
    if state.metric is not None and state.value is not None:
        found = f"{state.metric} {measured(state.metric, state.value)}"
    took = state.spent.seconds
    return (
        f"{state.step}/{total}",
        found,
        duration(took) if took else UNKNOWN,
        UNKNOWN if state.eta_seconds is None else duration(state.eta_seconds),
    )


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> Table:
    """Return a table without lines."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def state_table(graph: Graph, states: Mapping[str, RunState]) -> Table:
    """Return the table of the nodes; the star is at the one whose model is wanted."""
    return table_of(_COLUMNS, rows_of(graph, states), _RIGHT)


def run_table(name: str, state: RunState) -> Table:
    """Return the table of one run."""
    text = f"failed: {state.error}" if state.state == "failed" else state.state
    return table_of(_COLUMNS, [(name, text, *figures(state))], _RIGHT)


def ledger_table(ledger: Mapping[str, Any]) -> Table:
    """Return what the result, the other ends and the reference cost, each sum by itself."""
    bills = [("result", ledger["result"])]
    bills += [("beside it", {"node": name, **known}) for name, known in ledger["others"].items()]
    rows: list[tuple[str, ...]] = [
        (
            f"{what}: {known['node']}",
            _or_unknown(known["flops"], flops),
            duration(known["device_seconds"]),
            f"{duration(known['critical_seconds'])} ({' > '.join(known['critical_path'])})",
            _or_unknown(known["memory_gib"], lambda gib: bytes_(gib * 2**30)),
            duration(known["start_up_seconds"]),
            duration(known["lost_device_seconds"]),
        )
        for what, known in bills
    ]
    reference = ledger["reference"]
    if reference is not None:
        rows.append(("reference, not run", _or_unknown(reference["flops"], flops), *[UNKNOWN] * 5))
    columns = ("ledger", "operations", "device time", "critical path", "memory", "start-up", "lost")
    return table_of(columns, rows, columns[1:3] + columns[4:])


def _or_unknown(value: float | None, text: Any) -> str:
    return UNKNOWN if value is None else str(text(value))


def show(table: Table) -> None:
    """Print a table; off a terminal at a fixed width."""
    console = RichConsole(highlight=False, markup=False)
    if not console.is_terminal:
        console = RichConsole(highlight=False, markup=False, width=_WIDTH)
    console.print(table)


def node_json(state: RunState) -> dict[str, Any]:
    """Return a run's state as plain values."""
    plain = asdict(state)
    return {**plain, "seconds": state.spent.seconds}
