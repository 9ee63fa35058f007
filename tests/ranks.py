"""Run a function on several gloo processes, as torchrun would start them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(command: Sequence[str], world_size: int) -> list[subprocess.Popen[str]]:
    """Start one process per rank with torchrun's variables, without torchrun's start-up time."""
    port = str(free_port())
    _heed_interrupts()
    processes = []
    for rank in range(world_size):
        environ = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        processes.append(
            subprocess.Popen(
                command,
                env=environ,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    return processes


def _heed_interrupts() -> None:
    """Undo what a shell does to its background jobs: they, and what they start, ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_ranks(
    command: Sequence[str], world_size: int, timeout: float = 240
) -> list[subprocess.CompletedProcess[str]]:
    """Run `command` on every rank and return what each one did."""
    processes = start_ranks(command, world_size)
    done = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=timeout)
            done.append(subprocess.CompletedProcess(command, process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return done


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
    process = subprocess.Popen(
        [sys.executable, str(worker), *words],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its forks as well
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]), err
