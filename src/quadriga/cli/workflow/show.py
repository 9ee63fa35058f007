"""The output of ``quadriga run`` and ``quadriga status``: tables, and live progress."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from rich.console import Console as RichConsole
from rich.live import Live as RichLive
from rich.table import Table

from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.status import RunState, state_of
from quadriga.errors import UserError
from quadriga.formatting import bytes_, duration, flops, measured
from quadriga.workflow.directory import Graph, WorkflowDirectory
from quadriga.workflow.graph import levels_of, order_of
from quadriga.workflow.runner import Outcome, Progress

UNKNOWN = "-"
_WIDTH = 200
_COLUMNS = ("node", "state", "steps", "found", "time", "left")
_RIGHT = ("steps", "time", "left")


def waits_for(graph: Graph, states: Mapping[str, RunState], name: str) -> list[str]:
    """Return the unfinished nodes that a node needs; if any has failed, the failed ones."""
    left = [other for other in graph.needs[name] if states[other].state != "finished"]
    return [other for other in left if states[other].state == "failed"] or left


def state_text(graph: Graph, states: Mapping[str, RunState], name: str) -> str:
    """Return a node's state as text."""
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
    """Return one row per node, in topological order and indented by level."""
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
    """Return a run's steps, metric, elapsed time and remaining time as text."""
    total = UNKNOWN if state.total_steps is None else str(state.total_steps)
    found = UNKNOWN
    if state.metric is not None and state.value is not None:
        found = f"{state.metric} {measured(state.metric, state.value)}"
    took = state.cost.seconds
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
    """Return the table of the nodes, with a star at the result."""
    return table_of(_COLUMNS, rows_of(graph, states), _RIGHT)


def run_table(name: str, state: RunState) -> Table:
    """Return the table of one run."""
    text = f"failed: {state.error}" if state.state == "failed" else state.state
    return table_of(_COLUMNS, [(name, text, *figures(state))], _RIGHT)


def ledger_table(ledger: Mapping[str, Any]) -> Table:
    """Return the table of the costs of the result, of the other final nodes and the reference."""
    costs = [("result", ledger["result"])]
    costs += [("beside it", {"node": name, **known}) for name, known in ledger["others"].items()]
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
        for what, known in costs
    ]
    reference = ledger["reference"]
    if reference is not None:
        rows.append(("reference, not run", _or_unknown(reference["flops"], flops), *[UNKNOWN] * 5))
    columns = ("ledger", "operations", "device time", "critical path", "memory", "start-up", "lost")
    return table_of(columns, rows, columns[1:3] + columns[4:])


def _or_unknown(value: float | None, text: Any) -> str:
    return UNKNOWN if value is None else str(text(value))


def show(table: Table) -> None:
    """Print a table; outside a terminal at a fixed width."""
    console = RichConsole(highlight=False, markup=False)
    if not console.is_terminal:
        console = RichConsole(highlight=False, markup=False, width=_WIDTH)
    console.print(table)


def node_json(state: RunState) -> dict[str, Any]:
    """Return a run's state as plain values."""
    plain = asdict(state)
    return {**plain, "seconds": state.cost.seconds}


def status(work_dir: Path, as_json: bool) -> None:
    """Print the progress of a workflow or a run.

    Raises:
        UserError: The directory holds neither.
    """
    directory = WorkflowDirectory(work_dir)
    if directory.graph.is_file():
        _workflow(directory, as_json)
        return
    run = RunDirectory(work_dir)
    if not run.config.is_file():
        raise UserError(
            f"{work_dir} holds neither a workflow nor a run; name the --work-dir of quadriga run "
            "or quadriga train"
        )
    state = state_of(work_dir, None)
    if as_json:
        print(json.dumps({"run": str(work_dir), **node_json(state)}, indent=2))
    else:
        show(run_table(work_dir.name or str(work_dir), state))


def _workflow(directory: WorkflowDirectory, as_json: bool) -> None:
    graph = directory.read_graph()
    states = directory.states(graph)
    ledger = directory.ledger(graph, states)
    if not as_json:
        show(state_table(graph, states))
        print()
        show(ledger_table(ledger))
        return
    nodes = {
        name: {
            "needs": list(graph.needs[name]),
            "waits_for": waits_for(graph, states, name) if state.state == "waiting" else [],
            **node_json(state),
        }
        for name, state in states.items()
    }
    content = {"workflow": graph.name, "work_dir": str(directory.path), "result": graph.result}
    print(json.dumps({**content, "nodes": nodes, "ledger": ledger}, indent=2))


LOOK_SECONDS = 1.0
"""Seconds between two updates of the table on a terminal."""
LINE_SECONDS = 30.0
"""Seconds between two lines about a node outside a terminal."""


@final
class Live:
    """The live display of a workflow's nodes."""

    def __init__(self, directory: WorkflowDirectory, graph: Graph) -> None:
        """Make a display; it starts when its context is entered."""
        self._directory, self._graph = directory, graph
        self._console = RichConsole(highlight=False, markup=False)
        self._live: RichLive | None = None
        self._known: dict[str, Progress] = {}
        self._looked = 0.0
        self._told: dict[str, float] = {}

    def __enter__(self) -> Self:
        """Start the display; on a terminal, show the table."""
        if self._console.is_terminal:
            self._live = RichLive(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the display: remove the table, keep the lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Print a line; on a terminal, above the table."""
        if self._console.is_terminal:
            self._console.print(text, soft_wrap=True)
        else:
            print(text, flush=True)

    def watch(self, outcome: Outcome) -> None:
        """Print changes, and from time to time the progress of the nodes."""
        for name, progress in outcome.progress.items():
            before = self._known.get(name, "waits")
            if progress != before:
                self._changed(name, progress, outcome)
        fresh = not self._known
        self._known = dict(outcome.progress)
        now = time.monotonic()
        if self._live is not None and (fresh or now - self._looked >= LOOK_SECONDS):
            self._looked = now
            states = self._directory.states(self._graph)
            self._live.update(state_table(self._graph, states), refresh=True)
        elif self._live is None:
            self._lines(outcome, now)

    def _changed(self, name: str, progress: Progress, outcome: Outcome) -> None:
        self._told[name] = time.monotonic()
        if progress == "runs":
            self.say(f"{name}: started, {self._directory.run_of(name)}")
        elif progress == "failed":
            self.say(f"{name}: failed: {outcome.errors[name]}")
        elif name in self._known or progress == "stopped":
            steps, found, took, _ = figures(self._state(name))
            self.say(f"{name}: {progress} after {steps} steps, {found}, {took}")

    def _lines(self, outcome: Outcome, now: float) -> None:
        for name, progress in outcome.progress.items():
            if progress == "runs" and now - self._told.get(name, now) >= LINE_SECONDS:
                self._told[name] = now
                steps, found, _, left = figures(self._state(name))
                self.say(f"{name}: step {steps}, {found}, {left} left")

    def _state(self, name: str) -> RunState:
        return self._directory.states(self._graph)[name]
