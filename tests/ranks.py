"""Run a command on several gloo processes, as torchrun would start them.

Every process is a fork of one Python that has torch and quadriga: see `rank_pool`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Pool:
    """The Python that forks; it ends with this process."""

    def __init__(self) -> None:
        """Start it."""
        self._control, other = socket.socketpair()
        self._folder = tempfile.mkdtemp(prefix="quadriga-ranks-")
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        self._unread, self._count = b"", 0
        self._started, self._codes = 0, {}
        with other:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "rank_pool.py"), str(other.fileno())],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._control.shutdown(socket.SHUT_RDWR)
        self._process.wait(30)
        self._control.close()

    def start(self, command: Sequence[str], environ: Mapping[str, str]) -> Rank:
        """Start one process."""
        self._count += 1
        out, err = (Path(self._folder, f"{self._count}.{name}") for name in ("out", "err"))
        paths = os.pathsep.join([str(HERE), str(HERE / "engine"), os.environ.get("PYTHONPATH", "")])
        request = {
            "words": list(command[1:]),
            "environ": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environ},
            "folder": os.getcwd(),
            "out": str(out),
            "err": str(err),
        }
        self._control.sendall(json.dumps(request).encode() + b"\n")
        self._started = 0
        while not self._started:
            self._read()
        return Rank(self, self._started, command, out, err)

    def _read(self) -> None:
        data = self._control.recv(65536)
        if not data:
            make_pool.cache_clear()
            raise RuntimeError("the pool of ranks has ended")
        *lines, self._unread = (self._unread + data).split(b"\n")
        for message in map(json.loads, lines):
            if "started" in message:
                self._started = message["started"]
            else:
                self._codes[message["ended"]] = message["code"]

    def code(self, pid: int, seconds: float) -> int | None:
        """Wait for the end of a process; return its exit code, or None if it has not ended."""
        deadline = time.monotonic() + seconds
        while pid not in self._codes:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._control], [], [], left)[0]:
                return None
            self._read()
        return self._codes[pid]


@cache
def make_pool() -> Pool:
    """Return the pool of this process."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell's background jobs, and what they start, ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return Pool()


class Rank:
    """A process of the pool, with what the tests use of `subprocess.Popen`."""

    def __init__(self, pool: Pool, pid: int, args: Sequence[str], out: Path, err: Path) -> None:
        self._pool, self.pid, self.args = pool, pid, args
        self._out, self._err = out, err
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None."""
        if self.returncode is None:
            self.returncode = self._pool.code(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        """Wait for the end; return the exit code."""
        if self.returncode is None:
            self.returncode = self._pool.code(self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout)
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for the end; return what was printed to standard output and error."""
        self.wait(timeout)
        return self._out.read_text(), self._err.read_text()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


def start_ranks(command: Sequence[str], world_size: int) -> list[Rank]:
    """Start one process per rank with torchrun's variables, without the start-up time."""
    own = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        make_pool().start(command, {**own, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world_size)
    ]


def run_ranks(
    command: Sequence[str], world_size: int, timeout: float = 240
) -> list[subprocess.CompletedProcess[str]]:
    """Run `command` on every rank and return what each one did.

    Raises:
        AssertionError: One has not ended in time; with the stacks of those that had to be ended.
    """
    processes = start_ranks(command, world_size)
    deadline = time.monotonic() + timeout
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    late = [process for process in processes if process.poll() is None]
    for process in late:
        process.send_signal(signal.SIGABRT)
        process.send_signal(signal.SIGCONT)
    told = [process.communicate(30) for process in processes]
    for process in late:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its forks
    assert not late, "\n".join([f"not ended after {timeout} s", *(err for _, err in told)])
    return [
        subprocess.CompletedProcess(command, process.wait(), out, err)
        for process, (out, err) in zip(processes, told, strict=True)
    ]


def quadriga(*words: str) -> list[str]:
    """Return the command line of the ``quadriga`` command in this interpreter."""
    return [sys.executable, "-m", "quadriga", *words]


def run_quadriga(
    *words: str, world_size: int = 1, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run the command on `world_size` ranks; return rank 0's result, the worst exit code."""
    results = run_ranks(quadriga(*words), world_size, timeout)
    worst = max(results, key=lambda result: abs(result.returncode))
    first = results[0]
    errors = first.stderr if worst is first else first.stderr + worst.stderr
    return subprocess.CompletedProcess(first.args, worst.returncode, first.stdout, errors)


def run_worker(worker: Path, *words: str, timeout: float = 150) -> tuple[Any, str]:
    """Run a script that forks processes of its own, in a session that is killed as a whole.

    Returns:
        The JSON that its last line is, and what it wrote to standard error.
    """
    process = make_pool().start([sys.executable, str(worker), *words], {})
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its forks as well
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]), err
