"""The runner of a workflow: starts each node when all that it needs is finished, in parallel."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal, final

from quadriga.engine.faults.preemption import INTERRUPT_FROM_PARENT, SIGNALS, handling
from quadriga.engine.logs.times import FAILED, STOPPED, note
from quadriga.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, INTERRUPTED
from quadriga.workflow.graph import Needs
from quadriga.workflow.launcher import CONSOLE, NodeLauncher, Running, Task, last_error

SAVE_SECONDS = 600.0
"""Seconds that the nodes may take to save and end after a signal."""

Progress = Literal["waits", "runs", "finished", "failed", "stopped"]


@final
@dataclass
class Outcome:
    """The progress of every node, and the exit codes and errors."""

    progress: dict[str, Progress] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    """Node -> exit code, for nodes that failed or stopped, in the order of their ends."""
    errors: dict[str, str] = field(default_factory=dict)
    """Node -> error message, for failed nodes."""
    asked_by: int | None = None
    """The signal that stopped the workflow; None if none came."""

    @property
    def exit_code(self) -> int:
        """The code of a stopped run if a signal came; else the first node's in `codes`; else 0."""
        if self.asked_by is not None:
            return EXIT_PREEMPTED
        return next(iter(self.codes.values()), 0)


@final
class WorkflowRunner:
    """Starts nodes when they are ready, and waits for all of them."""

    def __init__(
        self,
        needs: Needs,
        tasks: Mapping[str, Task],
        finished: set[str],
        launcher: NodeLauncher,
        prepare: Callable[[str], None],
        is_finished: Callable[[str], bool],
        *,
        max_restarts: int = 0,
        poll_seconds: float = 0.2,
    ) -> None:
        """Make a runner; `run` starts the nodes.

        Args:
            needs: The graph.
            tasks: The nodes to run; other nodes are never started.
            finished: Nodes that are complete.
            launcher: Starts a node.
            prepare: Called before a node starts, when all that it needs is finished.
            is_finished: Returns whether a node is complete, from its files.
            max_restarts: Maximum number of restarts of a node that was killed.
            poll_seconds: Seconds between two polls.
        """
        self._needs, self._tasks, self._launcher = needs, tasks, launcher
        self._prepare, self._is_finished = prepare, is_finished
        self._left = dict.fromkeys(tasks, max_restarts)
        self._poll_seconds = poll_seconds
        self._running: dict[str, Running] = {}
        self._again = False
        self.outcome = Outcome()
        for name in needs:
            self.outcome.progress[name] = "finished" if name in finished else "waits"

    def run(self, watch: Callable[[Outcome], None]) -> Outcome:
        """Run all nodes that can run, and return the outcome.

        SIGTERM, SIGUSR1 and Ctrl-C are forwarded, on which the nodes save and end. A second Ctrl-C
        kills the nodes, which loses the steps since their last checkpoints.

        Args:
            watch: Called with the outcome at every poll, and at the end.
        """
        try:
            with handling(SIGNALS, self._handle):
                while self._start() or self._running:
                    watch(self.outcome)
                    time.sleep(self._poll_seconds)
                    self._collect()
        finally:
            for running in self._running.values():
                running.kill()
        watch(self.outcome)
        return self.outcome

    def blocked_by(self, name: str) -> list[str]:
        """Return the unfinished nodes that a node needs; if any has failed, the failed ones."""
        progress = self.outcome.progress
        left = [other for other in self._needs[name] if progress[other] != "finished"]
        return [n for n in left if progress[n] == "failed"] or left

    def _start(self) -> bool:
        """Start the nodes that are ready; return whether any was started."""
        started = False
        for name, task in self._tasks.items():
            if self.outcome.asked_by is not None:
                break
            is_ready = self.outcome.progress[name] == "waits" and not self.blocked_by(name)
            if is_ready and self._launcher.has_room(task, len(self._running)):
                self._prepare(name)
                task.folder.mkdir(parents=True, exist_ok=True)
                note(task.folder, "start", command=" ".join(task.words))
                self._running[name] = self._launcher.start(task)
                self.outcome.progress[name] = "runs"
                started = True
                if self.outcome.asked_by is not None:  # the signal came during the start
                    self._tell(name, self.outcome.asked_by)
        return started

    def _collect(self) -> None:
        """Record the outcome of nodes that have ended."""
        for name in list(self._running):
            code = self._running[name].poll()
            if code is not None:
                del self._running[name]
                self._ended(name, code)

    def _ended(self, name: str, code: int) -> None:
        outcome, task = self.outcome, self._tasks[name]
        if code == 0 and self._is_finished(name):
            outcome.progress[name] = "finished"
            return
        asked = outcome.asked_by is not None
        if asked or code in (EXIT_PREEMPTED, INTERRUPTED):
            outcome.progress[name] = "stopped"
            outcome.codes[name] = code or EXIT_PREEMPTED
            note(task.folder, "end", how=STOPPED, code=code)
            return
        if code > 128 and self._left[name] > 0:
            self._left[name] -= 1
            outcome.progress[name] = "waits"
            return
        outcome.progress[name] = "failed"
        outcome.codes[name] = code or EXIT_USER_ERROR
        outcome.errors[name] = _sentence(task, code)
        note(task.folder, "end", how=FAILED, code=code, error=outcome.errors[name])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.outcome.asked_by is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt  # the second Ctrl-C: `run` kills the remaining nodes
            return
        self.outcome.asked_by = number
        for name in self._running:
            self._tell(name, number)

    def _tell(self, name: str, number: int) -> None:
        self._running[name].tell(INTERRUPT_FROM_PARENT if number == signal.SIGINT else number)


def _sentence(task: Task, code: int) -> str:
    if code > 128:
        try:
            return f"killed by {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    if code == 0:
        return "it ended without its last checkpoint or its evaluation; see its console.txt"
    return last_error(task.folder / CONSOLE) or f"it ended with exit code {code}"
