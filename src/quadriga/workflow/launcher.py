"""Launchers of a workflow's nodes: the interface, and one that starts processes on this machine.

A workflow uses `NodeLauncher` only. A launcher for a cluster's scheduler would submit jobs, and
implement the three methods of `Running`: query the job's state, cancel it, kill it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from quadriga.config.own_code import code_options
from quadriga.launch.attempts import WITH_PARENT

CONSOLE = "console.txt"
"""File of the output of a node's process, in its work directory."""


@final
@dataclass(frozen=True)
class Task:
    """A node to start."""

    name: str
    config: Path
    """The node's config.json."""
    folder: Path
    """The node's work directory."""
    ranks: int
    """Number of processes that the node starts, one device each."""
    device: str
    """``train.device`` of its config."""

    @property
    def words(self) -> list[str]:
        """The command line after ``quadriga``."""
        words = ["train", str(self.config), "--work-dir", str(self.folder), "--resume"]
        return [*words, *code_options()]


class Running(ABC):
    """A node that was started."""

    @abstractmethod
    def poll(self) -> int | None:
        """Return the exit code, 128 + n for signal n; None while it runs."""

    @abstractmethod
    def tell(self, number: int) -> None:
        """Send a signal; on SIGTERM the run saves and ends."""

    @abstractmethod
    def kill(self) -> None:
        """Kill the node's processes and wait for their end."""


class NodeLauncher(ABC):
    """Starts nodes, up to a limit of nodes at once."""

    @abstractmethod
    def has_room(self, task: Task, running: int) -> bool:
        """Return whether a node can start while `running` others run."""

    @abstractmethod
    def start(self, task: Task) -> Running:
        """Start a node; its output goes to ``console.txt`` in its work directory.

        Raises:
            OSError: The process cannot be started.
        """


@final
class LocalLauncher(NodeLauncher):
    """Starts nodes as processes of this machine, and divides devices and cores among them."""

    def __init__(
        self, slots: int, devices: Sequence[str], cores: int, environ: Mapping[str, str]
    ) -> None:
        """Make a launcher for the given resources.

        Args:
            slots: Maximum number of nodes at once.
            devices: The GPUs, as CUDA_VISIBLE_DEVICES names them; empty on the CPU.
            cores: CPU cores of this process.
            environ: The environment variables of the processes.
        """
        self._slots, self._cores, self._environ = slots, cores, dict(environ)
        self._users = dict.fromkeys(devices, 0)

    def has_room(self, task: Task, running: int) -> bool:
        """Return whether there is a free slot."""
        return running < self._slots

    def start(self, task: Task) -> Running:
        """Start a process on the devices with the fewest users."""
        devices = self._devices_for(task)
        environ = self._environ | {WITH_PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        threads = max(1, self._cores // (self._slots * task.ranks))
        environ.setdefault("OMP_NUM_THREADS", str(threads))
        if devices:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        task.folder.mkdir(parents=True, exist_ok=True)
        # -P: the current folder is no place to import from.
        command = [sys.executable, "-P", "-m", "quadriga", *task.words]
        with (task.folder / CONSOLE).open("ab") as console:
            process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                # A terminal's Ctrl-C reaches this process only, which then signals the nodes.
                start_new_session=True,
            )
        for device in devices:
            self._users[device] += 1
        return _Process(process, self, devices)

    def _devices_for(self, task: Task) -> list[str]:
        # cuda:1 names a device and cpu needs none, so there is nothing to assign.
        if task.device not in ("auto", "cuda"):
            return []
        return sorted(self._users, key=lambda d: (self._users[d], list(self._users).index(d)))[
            : task.ranks
        ]

    def give_back(self, devices: Sequence[str]) -> None:
        """Release the devices of a process that has ended."""
        for device in devices:
            self._users[device] -= 1


@final
class _Process(Running):
    def __init__(
        self, process: subprocess.Popen[bytes], owner: LocalLauncher, devices: Sequence[str]
    ) -> None:
        self._process, self._owner, self._devices = process, owner, list(devices)

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is None:
            return None
        self._owner.give_back(self._devices)
        self._devices = []
        return code if code >= 0 else 128 - code

    def tell(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def visible_devices(count: int, environ: Mapping[str, str]) -> list[str]:
    """Return the names of the GPUs that this process may use.

    Args:
        count: Number of GPUs.
        environ: The environment variables; CUDA_VISIBLE_DEVICES may select some of the GPUs.
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(i) for i in range(count)]
    return [name.strip() for name in chosen.split(",") if name.strip()][:count]


def default_slots(devices: int, ranks: int) -> int:
    """Return the number of nodes at once: one per group of `ranks` GPUs; 1 on the CPU."""
    return max(1, devices // ranks)


def last_error(console: Path) -> str | None:
    """Return the last ``error: ...`` of a console.txt, else its last line; None if it has none."""
    try:
        lines = console.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        head, found, rest = line.partition("error: ")
        if found and (not head or head.startswith("[rank ")):
            return rest
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
