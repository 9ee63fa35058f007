"""``python -m launch``: the processes of one server of a run.

Processes of a script on this host, one after the other numbered: they stand and fall together.

Nothing here imports torch, so that the processes start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from quadriga.engine.faults.preemption import SIGNALS, handling
from quadriga.errors import UserError
from quadriga.launch.attempts import FINAL
from quadriga.surfaces.pipedream_bert.words import Parser, run_command

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


PORT = 12345
"""Where the processes of several servers meet on the server of rank 0, unless told otherwise."""

EXAMPLES = """examples:
  one server with 8 GPUs:
    python -m launch --nproc_per_node=8 main_with_runtime.py --module models.bert24.depth=8 ...
  the second of two servers:
    python -m launch --nnodes 2 --node_rank 1 --nproc_per_node=8 main_with_runtime.py \\
        --master_addr 10.185.12.207 --module models.bert24.depth=8 ...

Each process is started as `python -u SCRIPT --rank=R --local_rank=I ARGUMENTS` with torchrun's
variables (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT). When one of
them fails, all are ended, and its exit code is the launcher's."""


def parser() -> Parser:
    """Return the parser of the launcher's own flags."""
    made = Parser("python -m launch", "Start the processes of one server of a run.", EXAMPLES)
    made.add_argument("--nnodes", type=int, default=1, help="servers of the run (1)")
    made.add_argument("--node_rank", type=int, default=0, help="which server this is, from 0 (0)")
    made.add_argument(
        "--nproc_per_node", type=int, default=1, help="processes on each server, one per GPU (1)"
    )
    made.add_argument(
        "--master_port",
        type=int,
        default=None,
        help=f"port on the server of rank 0; MASTER_PORT or {PORT} by default, and with one "
        "server a free one, so that several runs fit on it",
    )
    made.add_argument("training_script", help="the script to start")
    made.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="its arguments; --master_addr among them is the address of the server of rank 0",
    )
    return made


def place_of(options: argparse.Namespace, environ: Mapping[str, str]) -> Place:
    """Return which processes are to be started, and where they meet.

    Raises:
        UserError: A number is out of range, or several servers have no address to meet at.
    """
    told = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    told.add_argument("--master_addr")
    told.add_argument("--master_port", type=int)
    try:
        script, _ = told.parse_known_args(options.arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}; see python -m launch --help") from error
    address = script.master_addr or environ.get("MASTER_ADDR")
    port = options.master_port or script.master_port or _port_in(environ)
    if options.nnodes > 1 and address is None:
        raise UserError(
            f"--master_addr must be given to the script for {options.nnodes} servers: the address "
            "of the one with --node_rank 0"
        )
    if port is None:
        port = free_port() if options.nnodes == 1 else PORT
    place = Place(
        nodes=options.nnodes,
        node_rank=options.node_rank,
        processes=options.nproc_per_node,
        address="127.0.0.1" if options.nnodes == 1 else str(address),
        port=port,
    )
    place.check()
    return place


def _port_in(environ: Mapping[str, str]) -> int | None:
    text = environ.get("MASTER_PORT")
    if text is not None and not text.isdecimal():
        raise UserError(f"MASTER_PORT must be a number, but is {text!r}")
    return None if text is None else int(text)


def launch(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Start the processes and wait for them; return the exit code."""
    options = parser().parse_args(arguments)
    place = place_of(options, environ)
    if not Path(options.training_script).is_file():
        raise UserError(
            f"{options.training_script} does not exist here; run the command in the folder of the "
            "script, or name its path"
        )
    return run_processes(place, options.training_script, options.arguments, environ)


def main() -> None:
    """Run the command line."""
    run_command(lambda: launch(sys.argv[1:], os.environ))
