"""What ``tools/dist_train.sh`` starts: the processes of one host of a run.

    python -m quadriga.surfaces.mmselfsup.launch CONFIG GPUS [ARGUMENTS OF train.py]

NNODES, NODE_RANK, MASTER_ADDR and PORT say which of several hosts this is, and where they meet.
The processes of a single host meet in a file, so that two runs on one host never collide; PORT is
needed by several hosts alone.

This module does not import torch, so that errors and ranks appear at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from quadriga.errors import UserError, did_you_mean
from quadriga.surfaces.command import run_command

MODULE = "quadriga.surfaces.mmselfsup.launch"
USAGE = "sh tools/dist_train.sh CONFIG GPUS [arguments of train.py]"
_DEFAULTS = {"NNODES": "1", "NODE_RANK": "0", "PORT": "29500"}


def launch(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Start the processes and wait for them; return the exit code.

    Raises:
        UserError: The words or the variables are no numbers, or are missing.
    """
    if len(words) < 2 or words[0] in ("-h", "--help"):
        raise UserError(f"dist_train.sh needs a config and the number of processes: {USAGE}")
    config, gpus, rest = words[0], words[1], words[2:]
    if not gpus.isdecimal() or gpus == "0":
        raise UserError(f"GPUS must be a number of processes, but is {gpus}: {USAGE}")
    values = {name: environ.get(name) or default for name, default in _DEFAULTS.items()}
    for name, value in values.items():
        if not value.isdecimal():
            raise UserError(f"{name} must be a number, but is {value}; export it")
    nodes, node = int(values["NNODES"]), int(values["NODE_RANK"])
    if not 0 <= node < nodes:
        raise UserError(f"NODE_RANK must be below NNODES ({nodes}), but is {node}; export it")
    if not 0 < int(values["PORT"]) < 65536:
        raise UserError(f"PORT must be from 1 to 65535, but is {values['PORT']}; export it")
    address = environ.get("MASTER_ADDR") or "127.0.0.1"
    if nodes > 1 and "MASTER_ADDR" not in environ:
        near = did_you_mean("MASTER_ADDR", (name for name in environ if name != "MASTER_ADDR"))
        raise UserError(
            f"MASTER_ADDR must be the host of NODE_RANK 0 for {nodes} hosts, but is not set{near}; "
            "export it"
        )
    from quadriga.launch.torchrun import run_ranks

    meeting = (str(nodes), str(node), address, values["PORT"])
    arguments = [*meeting, config, "--launcher", "pytorch", *rest]
    return run_ranks(int(gpus), arguments, module=MODULE, alone=nodes == 1)


def become_rank(nodes: str, node: str, address: str, port: str, *arguments: str) -> None:
    """Train as one rank of all hosts'.

    Args:
        nodes: Hosts of the run.
        node: Which of them this is.
        address: Where the ranks of several hosts meet; those of one meet in a file.
        port: The port there.
        arguments: Those of train.py.
    """
    here, local = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    os.environ.update(RANK=str(int(node) * here + local), WORLD_SIZE=str(int(nodes) * here))
    if nodes != "1":
        os.environ.update(MASTER_ADDR=address, MASTER_PORT=port)
    from quadriga.surfaces.mmselfsup.main import in_keys, train

    run_command(lambda: train(arguments, os.environ), in_keys)


if __name__ == "__main__":
    if "LOCAL_WORLD_SIZE" in os.environ and "QUADRIGA_WITH_PARENT" in os.environ:
        become_rank(*sys.argv[1:])
    else:
        run_command(lambda: launch(sys.argv[1:], os.environ), str)
