"""``python -m launch``: the processes of one server of a run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from quadriga.errors import UserError
from quadriga.launch.processes import Place, free_port, run_processes
from quadriga.surfaces.pipedream_bert.words import Parser, run_command

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
