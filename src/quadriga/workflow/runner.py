"""Making the runs of a workflow: each once all that it needs is finished, side by side."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal, final

from quadriga.engine.faults.preemption import SIGNALS, handling
from quadriga.engine.logs.times import FAILED, STOPPED, note
from quadriga.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, INTERRUPTED
from quadriga.workflow.graph import Needs
from quadriga.workflow.launcher import CONSOLE, NodeLauncher, Running, Task, last_error

SAVE_SECONDS = 600.0
"""How long the nodes may take to save and end after they were told to."""

Progress = Literal["waits", "runs", "finished", "failed", "stopped"]
_TOLD = (*SIGNALS, signal.SIGINT)


@final
@dataclass
class Outcome:
    """Where every node is."""

    progress: dict[str, Progress] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    """Exit codes other than 0, in the order in which they came."""
    errors: dict[str, str] = field(default_factory=dict)
    """What each failed node has said."""
    asked_by: int | None = None
    """The signal that asked the workflow to stop."""

    @property
    def exit_code(self) -> int:
        """0; or what a stopped run ends with; or the code of the first node that failed."""
        if self.asked_by is not None:
            return INTERRUPTED if self.asked_by == signal.SIGINT else EXIT_PREEMPTED
        return next(iter(self.codes.values()), 0)


@final
class WorkflowRunner:
    """Starts nodes when they can be, and waits for all of them."""

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
        """Start nothing yet.

        Args:
            needs: The graph.
            tasks: The nodes that are to be made; others count only if they are finished.
            finished: Nodes of which nothing is left to do.
            launcher: Starts a node.
            prepare: Called before a node is started, when all that it needs is finished.
            is_finished: Whether nothing of a node is left to do, from its files.
            max_restarts: How often a node is started again after it was killed.
            poll_seconds: Time between two looks.
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
        """Make all nodes that can be made.

        SIGTERM and SIGUSR1 are handed on: the nodes save and end. Ctrl-C has them do the same; once
        more, and they are killed, which loses the steps since their last checkpoints.

        Args:
            watch: Called again and again, and after each change.
        """
        try:
            with handling(_TOLD, self._handle):
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
        """Return what a waiting node waits for: the nodes that have failed, if any have."""
        progress = self.outcome.progress
        left = [other for other in self._needs[name] if progress[other] != "finished"]
        return [n for n in left if progress[n] == "failed"] or left

    def _start(self) -> bool:
        """Start what can be started; return whether anything was."""
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
                if self.outcome.asked_by is not None:  # it came while the process was started
                    self._tell(name, self.outcome.asked_by)
        return started

    def _collect(self) -> None:
        """Take in the nodes that have ended."""
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
                raise KeyboardInterrupt  # the second one: `make` kills what is left
            return
        self.outcome.asked_by = number
        for name in self._running:
            self._tell(name, number)

    def _tell(self, name: str, number: int) -> None:
        self._running[name].tell(signal.SIGTERM if number == signal.SIGINT else number)


def _sentence(task: Task, code: int) -> str:
    if code > 128:
        try:
            return f"killed by {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    if code == 0:
        return "it ended without its last checkpoint or its evaluation; see its console.txt"
    return last_error(task.folder / CONSOLE) or f"it ended with exit code {code}"
