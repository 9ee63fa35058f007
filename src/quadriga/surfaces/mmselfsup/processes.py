"""The processes of a run under each launcher, as the engine's environment variables."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, MutableMapping
from typing import Any

from quadriga.distributed.environment import RENDEZVOUS_FILE
from quadriga.errors import UserError

PORT = 29500
"""Default port at which processes meet."""

_MPI = (
    ("RANK", "OMPI_COMM_WORLD_RANK"),
    ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
    ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
)


def set_up(launcher: str, environ: MutableMapping[str, str]) -> None:
    """Translate a launcher's variables of rank and size.

    Args:
        launcher: ``--launcher``, or the config's.
        environ: The environment variables; changed.

    Raises:
        UserError: The variables are not those of the launcher.
    """
    if launcher == "none":
        for name, value, wanted in (
            ("WORLD_SIZE", environ.get("WORLD_SIZE", "1"), "pytorch"),
            ("SLURM_NTASKS", _slurm_tasks(environ), "slurm"),
            ("OMPI_COMM_WORLD_SIZE", environ.get("OMPI_COMM_WORLD_SIZE", "1"), "mpi"),
        ):
            if value != "1":
                raise UserError(
                    f"--launcher must be {wanted} for the {value} processes that run ({name}), "
                    "but is none; add it"
                )
        return
    needed = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}[launcher]
    if needed not in environ:
        remedy = {
            "pytorch": "start with sh tools/dist_train.sh",
            "slurm": "start with sh tools/slurm_train.sh",
            "mpi": "start with mpirun",
        }[launcher]
        raise UserError(f"--launcher {launcher} needs {needed}, but it is not set; {remedy}")
    if launcher == "mpi":
        environ.update({name: environ[theirs] for name, theirs in _MPI if theirs in environ})
        if environ.get("WORLD_SIZE", "1") != "1" and "MASTER_ADDR" not in environ:
            raise UserError(
                "MASTER_ADDR must be the host of rank 0 under mpi, but is not set; export it"
            )
    if launcher == "slurm" and "MASTER_ADDR" not in environ:
        hosts = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_NODELIST", ""))
        environ["MASTER_ADDR"] = first_host(hosts)


def set_port(config: Mapping[str, Any], environ: MutableMapping[str, str]) -> None:
    """Set where processes meet: the config's port, else MASTER_PORT, else 29500.

    Raises:
        UserError: The port is none.
    """
    port = ((config.get("env_cfg") or {}).get("dist_cfg") or {}).get("port")
    if port is None:
        environ.setdefault("MASTER_PORT", str(PORT))
        return
    if not isinstance(port, int) or not 0 < port < 65536:
        raise UserError(f"env_cfg.dist_cfg.port must be from 1 to 65535, but is {port}; set it")
    if RENDEZVOUS_FILE in environ:  # the processes of one host meet in a file, at no port
        return
    if environ.get("MASTER_PORT") != str(port):
        # The launcher's own store listens elsewhere: rank 0 serves one at the config's port.
        environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    environ["MASTER_PORT"] = str(port)


def _slurm_tasks(environ: Mapping[str, str]) -> str:
    return environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in environ else "1"


def first_host(nodes: str) -> str:
    """Return the first host of a list such as ``gpu[07-09,12],cpu3``; 127.0.0.1 of an empty one."""
    if shutil.which("scontrol") is not None and nodes:
        done = subprocess.run(
            ["scontrol", "show", "hostname", nodes], capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and done.stdout.split():
            return done.stdout.split()[0]
    found = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    return "127.0.0.1" if found is None else found[1] + (found[2] or "")
