"""Rank, world size and device of this process, from the launcher's environment variables."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from quadriga.errors import UserError

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"

LOOPBACK = {
    "GLOO_SOCKET_IFNAME": _LOOPBACK,
    "NCCL_SOCKET_IFNAME": _LOOPBACK,
    "NCCL_RAS_ENABLE": "0",
}
"""Variables with which ranks of one machine listen on its loopback interface only.

gloo would listen on the address of the host's name, NCCL on every other interface; RAS is NCCL's
status service, which listens as well.
"""

RENDEZVOUS_FILE = "QUADRIGA_RENDEZVOUS_FILE"
"""Variable that names the file in which the ranks of one machine meet, in place of a store that
listens at MASTER_ADDR and MASTER_PORT."""


@dataclass(frozen=True)
class Launch:
    """The launcher's environment variables, parsed."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: str = "none"


@dataclass(frozen=True)
class DistEnv:
    """This process among the run's processes. World size 1 uses the same code as any other."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints messages."""
        return self.rank == 0


SINGLE = DistEnv(0, 1, 0, 1, torch.device("cpu"))
"""One process on the CPU."""


def read_launch(environ: Mapping[str, str]) -> Launch:
    """Read torchrun's, torch.distributed.launch's or srun's variables.

    Args:
        environ: The environment variables.

    Returns:
        The launch; a single process if no launcher is recognised.

    Raises:
        UserError: A launcher's variables are incomplete, not numbers, or the rank is too large.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in environ]
    if len(missing) == 1:
        raise UserError(
            f"RANK and WORLD_SIZE must be set together, but {missing[0]} is missing; "
            "start with torchrun, or unset the other"
        )
    if not missing:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        launcher = "torchrun"
    elif "SLURM_PROCID" in environ and environ.get("SLURM_NTASKS", "1") != "1":
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
        launcher = "slurm"
    else:
        return Launch()
    local = _tasks_of_node(environ) if launcher == "slurm" else "1"
    values = []
    for name, default in zip(names, ("0", "1", "0", local), strict=True):
        text = environ.get(name, default)
        if not text.isdecimal():
            raise UserError(f"{name} must be a number, but is {text!r}; start with torchrun")
        values.append(int(text))
    rank, world_size, local_rank, local_world_size = values
    if rank >= world_size:
        raise UserError(f"{names[0]} must be below {names[1]} ({world_size}), but is {rank}")
    return Launch(rank, world_size, local_rank, local_world_size, launcher)


def _tasks_of_node(environ: Mapping[str, str]) -> str:
    """Return this node's number of tasks from a list such as ``4(x2),2``; "1" if there is none."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", ""))
    nodes = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d{1,6})\))?", part)
        nodes += [found[1]] * int(found[2] or 1) if found is not None else []
    node = environ.get("SLURM_NODEID", "0")
    return nodes[int(node)] if node.isdecimal() and int(node) < len(nodes) else "1"


def pick_device(name: str, local_rank: int) -> torch.device:
    """Return the device of this process.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".
        local_rank: Index of the host's device that "cuda" means.

    Raises:
        UserError: The device does not exist on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"device {name} is not available on this machine; use device=cpu")
    device = torch.device(name if ":" in name else f"cuda:{local_rank}")
    if device.index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device {device} does not exist: this machine has {count} GPUs")
    return device


def set_threads(local_world_size: int) -> None:
    """Divide the host's cores among its ranks, unless the user has set OMP_NUM_THREADS.

    With several ranks a value of 1 is ignored, because torchrun sets it by default.
    """
    said = os.environ.get("OMP_NUM_THREADS")
    if said is None or (said == "1" and local_world_size > 1):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, (cores or 1) // local_world_size))
