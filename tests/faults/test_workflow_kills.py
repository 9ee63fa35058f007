"""A workflow that is killed and started again is the workflow that nobody disturbed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from quadriga.engine.logs.times import read_times
from quadriga.workflow.directory import WorkflowDirectory
from ranks import run_worker
from tiny import assert_same_run
from workflows import EVERY

STEPS = 24
WORKER = Path(__file__).with_name("workflow_worker.py")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="orphans end at once on Linux only")
def test_killed_at_three_moments_and_finished_is_undisturbed(tmp_path: Path) -> None:
    found, _ = run_worker(WORKER, str(tmp_path))
    assert found["undisturbed"] == 0
    assert found["runner killed"] == 128 + signal.SIGKILL
    assert found["child killed"] == 128 + signal.SIGKILL
    assert found["after that"] == {
        "left": ["failed", "killed by SIGKILL"],
        "right": ["finished", None],  # it does not need the one that was killed
        "last": ["waiting", None],
    }
    assert (found["runner asked to stop"], found["at the end"]) == (75, "stopped")
    assert found["finished"] == 0
    for name in EVERY:
        there, here = tmp_path / "alone" / name, tmp_path / "killed" / name
        assert_same_run(there, here, STEPS)
    attempts = {
        name: sum(e["event"] == "start" for e in read_times(tmp_path / "killed" / name))
        for name in EVERY
    }
    assert attempts == {"first": 2, "left": 2, "right": 1, "last": 2}
    directory = WorkflowDirectory(tmp_path / "killed")
    graph = directory.read_graph()
    nodes = directory.ledger(graph, directory.states(graph))["nodes"]
    assert [nodes[name]["attempts"] for name in EVERY] == [2, 2, 1, 2]
    assert nodes["last"]["lost_steps"] == nodes["right"]["lost_steps"] == 0
    assert {node["steps"] for node in nodes.values()} == {STEPS}
