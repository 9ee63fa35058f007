"""Ranks that wait for each other say so and give up; a taken port is one line."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest

from errors import assert_refused, assert_says
from ranks import Rank, free_port, make_pool, quadriga
from tiny import tiny_run


def start(folder: Path, rank: int, *words: str, **environ: str) -> Rank:
    """Start one of two ranks, on a host of its own."""
    own = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    command = quadriga(*tiny_run(folder / "runs" / "run", 2, "loader.workers=0", *words))
    return make_pool().start(command, {**own, "MASTER_ADDR": "127.0.0.1", **environ})


def finished(rank: Rank) -> subprocess.CompletedProcess[str]:
    out, err = rank.communicate(timeout=120)
    return subprocess.CompletedProcess(rank.args, rank.returncode or 0, out, err)


@pytest.mark.parametrize(
    ("rank", "address", "whom"),
    [
        (0, "127.0.0.1", "rank 1"),
        pytest.param(1, "127.0.0.1", "rank 0 (Connection refused)", marks=pytest.mark.long),
        pytest.param(1, "nowhere.invalid", "rank 0", marks=pytest.mark.long),
        pytest.param(0, "nowhere.invalid", "the host of rank 0", marks=pytest.mark.long),
    ],
)
def test_who_waits_says_for_whom_where_and_since_when(
    tmp_path: Path, rank: int, address: str, whom: str
) -> None:
    port = str(free_port())
    waiting = start(tmp_path, rank, MASTER_PORT=port, MASTER_ADDR=address)
    until, out = time.monotonic() + 90, ""
    try:
        while "since" not in out and time.monotonic() < until and waiting.poll() is None:
            time.sleep(0.2)
            out = waiting._out.read_text()
    finally:
        waiting.kill()
    assert_says(out, f"rank {rank} of 2", f"{address}:{port}", whom, "since", "5 minutes")


@pytest.mark.parametrize("rank", [0, 1])
def test_waiting_ends_with_one_line(tmp_path: Path, rank: int) -> None:
    port = str(free_port())
    done = finished(start(tmp_path, rank, "health.join_minutes=0.02", MASTER_PORT=port))
    done.stderr = done.stderr.removeprefix("[rank 1] ")
    assert_refused(done, f"127.0.0.1:{port}", f"rank {1 - rank}", "health.join_minutes")
    assert list(tmp_path.iterdir()) == []


ONLY_MEETS = """
import os, sys, time
from datetime import timedelta
import torch.distributed as dist
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), 2, False, timedelta(seconds=60))
store = dist.PrefixStore("quadriga/attempt_0", store)
store.set("joined/1", "")
store.add("number", 1)
store.set("complete", "")
time.sleep(100)
"""


def test_ranks_that_met_but_cannot_connect_give_up(tmp_path: Path) -> None:
    port = str(free_port())
    first = start(tmp_path, 0, "health.join_minutes=0.05", MASTER_PORT=port)
    other = subprocess.Popen([quadriga()[0], "-c", ONLY_MEETS, port])
    try:
        done = finished(first)
    finally:
        other.kill()
        other.wait()
    assert_refused(done, "rank 0 of 2", "connect", "GLOO_SOCKET_IFNAME", "health.join_minutes")
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_come_late_are_waited_for(tmp_path: Path) -> None:
    port = str(free_port())
    first = start(tmp_path, 1, MASTER_PORT=port)
    time.sleep(1)
    second = start(tmp_path, 0, MASTER_PORT=port)
    assert [rank.wait(120) for rank in (first, second)] == [0, 0]


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = finished(start(tmp_path, 0, MASTER_PORT=port))
    assert_refused(done, f"port {port}", "MASTER_PORT")


SCRIPT = """
import os
from quadriga.distributed.process_group import process_group
from quadriga.surfaces.command import run_command

def command() -> int:
    with process_group("cpu", os.environ):
        return 0

run_command(command, str)
"""


def test_a_taken_port_is_one_line_of_the_documented_launcher(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        place = ["--nnodes=2", "--node_rank=0", "--nproc_per_node=2", f"--master_port={port}"]
        words = [*place, "script.py", "--master_addr=127.0.0.1"]
        launch = "from quadriga.surfaces.pipedream_bert.launch import main; main()"
        done = subprocess.run(
            [quadriga()[0], "-c", launch, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert_refused(done, f"port {port}", "--master_port")
