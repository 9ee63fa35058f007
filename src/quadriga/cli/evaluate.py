"""``quadriga report``; ``quadriga eval`` is `quadriga.api.evaluate`."""

from __future__ import annotations

from pathlib import Path

from quadriga.engine.logs.directory import RunDirectory
from quadriga.report.run import write_report
from quadriga.report.workflow import write_workflow_report
from quadriga.workflow.directory import WorkflowDirectory


def report(run: Path) -> None:
    """Write the report of a run or a workflow and say where.

    Raises:
        UserError: There is neither.
    """
    workflow = WorkflowDirectory(run)
    if workflow.graph.is_file():
        print(f"report: {write_workflow_report(workflow)}")
        return
    RunDirectory(run).read_config()
    print(f"report: {write_report(run)}")
