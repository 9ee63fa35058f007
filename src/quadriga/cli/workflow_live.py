"""What ``quadriga run`` shows while it runs: one line per node, live on a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self, final

from rich.console import Console as RichConsole
from rich.live import Live as RichLive

from quadriga.cli.workflow.show import figures, state_table
from quadriga.engine.logs.status import RunState
from quadriga.workflow.directory import Graph, WorkflowDirectory
from quadriga.workflow.runner import Outcome, Progress

LOOK_SECONDS = 1.0
"""Time between two looks at the nodes' files, on a terminal."""
LINE_SECONDS = 30.0
"""Time between two lines of a node, elsewhere."""


@final
class Live:
    """Follows the nodes of a workflow."""

    def __init__(self, directory: WorkflowDirectory, graph: Graph) -> None:
        """Show nothing yet."""
        self._directory, self._graph = directory, graph
        self._console = RichConsole(highlight=False, markup=False)
        self._live: RichLive | None = None
        self._known: dict[str, Progress] = {}
        self._looked = 0.0
        self._told: dict[str, float] = {}

    def __enter__(self) -> Self:
        """Begin: on a terminal with the table."""
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
        """End: the table goes, the lines stay."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Print a line; above the table where there is one."""
        if self._console.is_terminal:
            self._console.print(text, soft_wrap=True)
        else:
            print(text, flush=True)

    def watch(self, outcome: Outcome) -> None:
        """Tell what has changed, and now and then how far the nodes are."""
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
