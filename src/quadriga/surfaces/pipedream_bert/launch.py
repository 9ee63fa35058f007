"""``python -m launch``: starts the processes of a run on one server.

The launcher starts this module on every rank of its server, and each process then executes the
script. The launchers of several servers do not communicate: the ranks rendezvous themselves.

This module does not import torch, so that errors and ranks appear at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quadriga.errors import UserError
from quadriga.surfaces.pipedream_bert.messages import Parser, run_command


@dataclass(frozen=True)
class Place:
    """The processes of a run on this host, and the rendezvous address of all."""

    nodes: int = 1
    node_rank: int = 0
    processes: int = 1
    """Processes on each host."""
    address: str = "127.0.0.1"
    port: int | None = None
    """None: none was given, and one server needs none."""

    def check(self) -> None:
        """Check the numbers.

        Raises:
            UserError: A number is out of range.
        """
        for flag, value in (("--nnodes", self.nodes), ("--nproc_per_node", self.processes)):
            if value < 1:
                raise UserError(f"{flag} must be at least 1, but is {value}")
        if not 0 <= self.node_rank < self.nodes:
            raise UserError(
                f"--node_rank must be from 0 to {self.nodes - 1} (--nnodes is {self.nodes}), but "
                f"is {self.node_rank}"
            )
        if self.port is not None and not 0 < self.port < 65536:
            raise UserError(f"the port must be from 1 to 65535, but is {self.port}")


PORT = 12345
"""Default rendezvous port on the server of rank 0 for runs on several servers."""

EXAMPLES = """examples:
  one server with 8 GPUs:
    python -m launch --nproc_per_node=8 main_with_runtime.py --module models.bert24.depth=8 ...
  the second of two servers:
    python -m launch --nnodes 2 --node_rank 1 --nproc_per_node=8 main_with_runtime.py \\
        --master_addr 10.185.12.207 --module models.bert24.depth=8 ...

Each process is started as `python -u -P SCRIPT --rank=R --local_rank=I ARGUMENTS` with torchrun's
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
        help=f"port on the server of rank 0; MASTER_PORT or {PORT} by default, and without use "
        "with one server, whose processes meet in a file",
    )
    made.add_argument("training_script", help="the script to start")
    made.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="its arguments; --master_addr among them is the address of the server of rank 0",
    )
    return made


def place_of(options: argparse.Namespace, environ: Mapping[str, str]) -> Place:
    """Return the processes to start and their rendezvous address.

    Raises:
        UserError: A number is out of range, or several servers have no address.
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
    if port is None and options.nnodes > 1:
        port = PORT
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
    from quadriga.launch.torchrun import run_ranks

    words = (place.nodes, place.node_rank, place.address, place.port or PORT)
    return run_ranks(
        place.processes,
        [*map(str, words), options.training_script, *options.arguments],
        module=__name__,
        alone=place.nodes == 1,
    )


def main() -> None:
    """Run the command line."""
    run_command(lambda: launch(sys.argv[1:], os.environ))


def become_script(
    nodes: str, node_rank: str, address: str, port: str, script: str, *rest: str
) -> None:
    """Go on as ``python -u -P SCRIPT --rank=R --local_rank=I ...``, one rank of all servers'.

    Args:
        nodes: Servers of the run.
        node_rank: Which of them this is.
        address: Where the ranks of several servers meet; those of one meet in a file.
        port: The port there.
        script: The script.
        rest: Its arguments.
    """
    environ = dict(os.environ)
    here, local_rank = int(environ["LOCAL_WORLD_SIZE"]), environ["LOCAL_RANK"]
    rank = int(node_rank) * here + int(local_rank)
    environ.update(RANK=str(rank), WORLD_SIZE=str(int(nodes) * here))
    if nodes != "1":
        environ.update(MASTER_ADDR=address, MASTER_PORT=port)
    own = [f"--rank={rank}", f"--local_rank={local_rank}"]
    # -P: what lies beside the script is not imported in place of a package.
    os.execve(sys.executable, [sys.executable, "-u", "-P", script, *own, *rest], environ)


if __name__ == "__main__":
    become_script(*sys.argv[1:])
