"""A tiny workflow, and ways to start its nodes without the seconds that an import takes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quadriga.cli import entry
from quadriga.cli.workflow import command, resolve
from quadriga.cli.workflow.command import RunRequest
from quadriga.launch.attempts import WITH_PARENT, end_with_parent
from quadriga.recipes.mae import mae_digits
from quadriga.report import run as html
from quadriga.workflow.graph import Node, Workflow
from quadriga.workflow.launcher import CONSOLE, NodeLauncher, Running, Task
from tiny import TINY


def diamond(steps: int = 12) -> Workflow:
    """First, then left and right from it, then last from the left."""
    values = dict(word.split("=", 1) for word in TINY)
    values |= {"train.steps": str(steps), "checkpoint.every_steps": "4", "loader.workers": "0"}
    plain = mae_digits().override(values)

    def after(name: str, own_seed: int) -> Any:
        return plain.override({"warm_start.path": f"@{name}", "seed": own_seed})

    return Workflow(
        name="diamond",
        nodes=(
            Node("last", after("left", 3)),
            Node("left", after("first", 1)),
            Node("right", after("first", 2)),
            Node("first", plain),
        ),
        result="last",
        reference=plain.override({"train.steps": 5 * steps}),
    )


EVERY = ["first", "left", "right", "last"]


def known(function: Callable[..., Workflow] = diamond) -> None:
    """Let the command find a workflow that is no recipe of the package, and draw no curves."""
    resolve.find_workflow = lambda name: function
    html.curves_of = lambda *arguments: []


def run(work_dir: Path, launcher: NodeLauncher, *words: str, **options: Any) -> int:
    """Run the tiny workflow as the command does."""
    request = RunRequest("diamond", tuple(words), work_dir, device="cpu", **options)
    return command.run_workflow(request, launcher)


class Ended(Running):
    """A node that has ended before anyone asks."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def tell(self, number: int) -> None:
        pass

    def kill(self) -> None:
        pass


class InProcess(NodeLauncher):
    """Trains each node in this process; `codes` are those of nodes that fail instead."""

    def __init__(self, codes: dict[str, tuple[int, str]] | None = None, reverse: bool = False):
        self.codes, self.made = codes or {}, []

    def has_room(self, task: Task, running: int) -> bool:
        return running < 1

    def start(self, task: Task) -> Running:
        self.made.append(task.name)
        with (
            (task.folder / CONSOLE).open("a") as console,
            contextlib.redirect_stdout(console),
            contextlib.redirect_stderr(console),
        ):
            if task.name in self.codes:
                code, text = self.codes[task.name]
                print(text)
                return Ended(code)
            return Ended(entry.run(task.words))


class Forked(NodeLauncher):
    """Trains each node in a fork of this process."""

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots

    def has_room(self, task: Task, running: int) -> bool:
        return running < self.slots

    def start(self, task: Task) -> Running:
        parent = os.getpid()
        pid = fork(lambda: self._child(task, parent))
        task.config.with_suffix(".pid").write_text(str(pid))
        return _Fork(pid)

    def _child(self, task: Task, parent: int) -> int:
        end_with_parent({WITH_PARENT: str(parent)})
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        with (task.folder / CONSOLE).open("a") as console:
            os.dup2(console.fileno(), 1)
            os.dup2(console.fileno(), 2)
            return entry.run(task.words)


class _Fork(Running):
    def __init__(self, pid: int) -> None:
        self.pid, self.code = pid, None

    def poll(self) -> int | None:
        if self.code is None:
            pid, state = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(state)
                self.code = code if code >= 0 else 128 - code
        return self.code

    def tell(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.tell(signal.SIGKILL)


def fork(function: Callable[[], int]) -> int:
    """Call a function in a fork of this process, which ends with what it returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = function()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
