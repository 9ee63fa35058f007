"""``quadriga status``."""

from __future__ import annotations

import json
from pathlib import Path

from quadriga.cli.workflow.show import (
    ledger_table,
    node_json,
    run_table,
    show,
    state_table,
    waits_for,
)
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.status import state_of
from quadriga.errors import UserError
from quadriga.workflow.directory import WorkflowDirectory


def status(work_dir: Path, as_json: bool) -> None:
    """Print how far a workflow or a run is.

    Raises:
        UserError: There is neither.
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
