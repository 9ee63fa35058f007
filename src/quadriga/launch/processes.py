"""Processes of a script on this host, one after the other numbered: they stand and fall together.

Nothing here imports torch, so that the processes start at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from quadriga.engine.faults.preemption import SIGNALS, handling
from quadriga.errors import UserError
from quadriga.launch.attempts import FINAL

POLL_SECONDS = 0.1
ALONE_SECONDS = 5.0
"""How long the others may go on by themselves after one has failed: they tell their errors."""
SAVE_SECONDS = 30.0
"""How long they may take to end after they were told to."""


@dataclass(frozen=True)
class Place:
    """Which of a run's processes this host has, and where all of them meet."""

    nodes: int = 1
    node_rank: int = 0
    processes: int = 1
    """Processes on each host."""
    address: str = "127.0.0.1"
    port: int = 12345

    def check(self) -> None:
        """Check the numbers.

        Raises:
            UserError: One of them is out of range.
        """
        for flag, value in (("--nnodes", self.nodes), ("--nproc_per_node", self.processes)):
            if value < 1:
                raise UserError(f"{flag} must be at least 1, but is {value}")
        if not 0 <= self.node_rank < self.nodes:
            raise UserError(
                f"--node_rank must be from 0 to {self.nodes - 1} (--nnodes is {self.nodes}), but "
                f"is {self.node_rank}"
            )
        if not 0 < self.port < 65536:
            raise UserError(f"the port must be from 1 to 65535, but is {self.port}")

    def environ(self, local_rank: int) -> dict[str, str]:
        """Return what tells one process its place, in torchrun's variables."""
        return {
            "RANK": str(self.node_rank * self.processes + local_rank),
            "WORLD_SIZE": str(self.nodes * self.processes),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def free_port() -> int:
    """Return a port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command_of(script: str, rank: int, local_rank: int, rest: Sequence[str]) -> list[str]:
    """Return the command line of one process: ``python -u SCRIPT --rank=R --local_rank=I ...``."""
    return [sys.executable, "-u", script, f"--rank={rank}", f"--local_rank={local_rank}", *rest]


def run_processes(
    place: Place, script: str, rest: Sequence[str], environ: Mapping[str, str]
) -> int:
    """Run a script in every process of this host and wait for all of them.

    When one fails, the others are told to end. SIGTERM and SIGUSR1 are handed on.

    Args:
        place: Which processes.
        script: The script.
        rest: Its arguments.
        environ: The environment variables that the processes get beside those of their place.

    Returns:
        The exit code: 0, or that of the first process that failed, 128 + n for signal n.
    """
    shared = dict(environ)
    if place.processes > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        shared.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // place.processes)))
    running: list[subprocess.Popen[bytes]] = []
    with _handing_on(running):
        try:
            for local_rank in range(place.processes):
                own = place.environ(local_rank)
                command = command_of(script, int(own["RANK"]), local_rank, rest)
                running.append(subprocess.Popen(command, env=shared | own))
            code = _wait(running)
        except KeyboardInterrupt:
            # The terminal has told the processes too: they say so, save nothing and end.
            _end(running, ALONE_SECONDS)
            return 128 + signal.SIGINT
        finally:
            _end(running, 0.0)
    return code


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [process.poll() for process in running]
        failed = [code for code in codes if code]
        if failed:
            _end(running, ALONE_SECONDS)
            # What one rank has said in a sentence, another may have met as a lost connection.
            code = next((code for code in failed if code in FINAL), failed[0])
            return code if code > 0 else 128 - code
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL_SECONDS)


def _end(running: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    """End the processes that are left: by themselves, then told to, then by force."""
    for number, seconds in ((None, patience), (signal.SIGTERM, SAVE_SECONDS)):
        for process in running:
            if number is not None and process.poll() is None:
                process.send_signal(number)
        until = time.monotonic() + seconds
        while any(process.poll() is None for process in running) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _handing_on(running: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Hand the signals that stop a run on to its processes, which save and end."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        for process in running:
            if process.poll() is None:
                process.send_signal(number)

    with handling(SIGNALS, hand_on):
        yield
