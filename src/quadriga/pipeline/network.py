"""How fast ranks of this machine exchange bytes, measured with two processes.

    python -m quadriga.pipeline.network RENDEZVOUS_FILE RANK DEVICE

is one of the two; `measure_network` starts them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from quadriga.errors import UserError
from quadriga.pipeline.planner.profile import Link, Network

SMALL, LARGE = 1024, 8 * 2**20
"""Bytes of the two messages that latency and bandwidth follow from."""
REPEATS = 7
TIMEOUT = 120.0


def measure_network(device: torch.device) -> Network:
    """Time messages between two processes: over NCCL with two GPUs or more, else over gloo.

    All ranks count as being on one node.

    Raises:
        UserError: The processes could not exchange anything.
    """
    kind = "cuda" if device.type == "cuda" and torch.cuda.device_count() > 1 else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "rendezvous")
        command = [sys.executable, "-m", "quadriga.pipeline.network", file]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [*command, str(rank), kind],
                env=environ,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for rank in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=TIMEOUT) for process in ranks]
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"two processes must exchange messages, but did not: {error}"
            ) from error
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    if any(process.returncode for process in ranks):
        reason = (outputs[0][1] or outputs[1][1]).strip().splitlines()
        raise UserError(
            "two processes must exchange messages, but failed "
            f"({reason[-1] if reason else 'no reason'}); give --device-spec or --profile"
        )
    small, large = json.loads(outputs[0][0].splitlines()[-1])
    link = link_of(small, large)
    return Network(within=link, between=link, ranks_per_node=None, overlaps=device.type == "cuda")


def link_of(small: float, large: float) -> Link:
    """Return the latency and the bandwidth that two messages' seconds give."""
    rest = max(large - small, 1e-9)
    return Link(bandwidth=(LARGE - SMALL) / rest, latency=max(0.0, small))


def _exchange(rank: int, kind: str) -> list[float]:
    """Send messages to and fro; return the seconds of one way, of a small and a large one."""
    place = torch.device("cpu") if kind == "cpu" else torch.device("cuda", rank)
    found = []
    for size in (SMALL, LARGE):
        message = torch.zeros(size, dtype=torch.uint8, device=place)

        def turn(message: torch.Tensor = message) -> None:
            for sender in (0, 1):
                if rank == sender:
                    dist.send(message, 1 - rank)
                else:
                    dist.recv(message, 1 - rank)

        found.append(_median_seconds(turn, place) / 2)
    return found


def _median_seconds(do: Callable[[], None], place: torch.device) -> float:
    taken = []
    for _ in range(2 + REPEATS):
        began = time.perf_counter()
        do()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def main() -> None:
    """Be one of the two processes."""
    file, rank, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if kind == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{file}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=TIMEOUT),
    )
    found = _exchange(rank, kind)
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
