"""What the launchers' variables and the device names mean."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest
import torch

from errors import refuses
from quadriga.distributed.environment import SINGLE, Launch, pick_device, read_launch, set_threads
from quadriga.distributed.process_group import process_group

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "6",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "2",
}

SHARED = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),2",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Launch()),
        ({"PATH": "/bin"}, Launch()),
        (TORCHRUN, Launch(3, 8, 1, 2, "torchrun")),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launch(0, 1, 0, 1, "torchrun")),
        (SRUN, Launch(5, 6, 1, 2, "slurm")),
        ({**SRUN, **TORCHRUN}, Launch(3, 8, 1, 2, "torchrun")),
        # srun --ntasks=7 without --ntasks-per-node
        ({**SHARED, "SLURM_NODEID": "0"}, Launch(5, 7, 1, 4, "slurm")),
        ({**SHARED, "SLURM_NODEID": "2"}, Launch(5, 7, 1, 2, "slurm")),
        ({**SHARED, "SLURM_STEP_TASKS_PER_NODE": "7"}, Launch(5, 7, 1, 7, "slurm")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Launch()),
        ({"SLURM_PROCID": "0"}, Launch()),
    ],
)
def test_a_launcher_is_read(environ: Mapping[str, str], expected: Launch) -> None:
    assert read_launch(environ) == expected


@pytest.mark.parametrize(
    ("environ", "fragments"),
    [
        ({"RANK": "1"}, ("RANK", "WORLD_SIZE is missing")),
        ({"WORLD_SIZE": "2"}, ("WORLD_SIZE", "RANK is missing")),
        ({**TORCHRUN, "RANK": "x"}, ("RANK", "number", "'x'")),
        ({**TORCHRUN, "RANK": "-1"}, ("RANK", "number", "'-1'")),
        ({**TORCHRUN, "RANK": "8"}, ("RANK", "WORLD_SIZE", "(8)", "is 8")),
        ({**SRUN, "SLURM_NTASKS": "many"}, ("SLURM_NTASKS", "number", "'many'")),
        ({**SRUN, "SLURM_LOCALID": ""}, ("SLURM_LOCALID", "number", "''")),
        ({**SRUN, "SLURM_PROCID": "6"}, ("SLURM_PROCID", "SLURM_NTASKS", "6")),
    ],
)
def test_a_broken_launch_is_refused(
    environ: Mapping[str, str], fragments: tuple[object, ...]
) -> None:
    with refuses(*fragments):
        read_launch(environ)


def test_without_an_address_there_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with refuses("MASTER_ADDR"), process_group("cpu", TORCHRUN):
        pytest.fail("there is a group")


def test_one_process_has_no_group() -> None:
    with process_group("cpu", {}) as env:
        assert env == SINGLE
        assert env.is_main
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("name", "local_rank", "expected"),
    [
        ("cpu", 1, "cpu"),
        ("auto", 1, "cuda:1"),
        ("cuda", 0, "cuda:0"),
        ("cuda", 1, "cuda:1"),
        ("cuda:1", 0, "cuda:1"),
    ],
)
def test_a_device_on_a_machine_with_two(
    name: str, local_rank: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device(name, local_rank) == torch.device(expected)


@pytest.mark.parametrize(("name", "local_rank"), [("cuda", 2), ("cuda:2", 0)])
def test_a_device_that_does_not_exist(
    name: str, local_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with refuses("cuda:2", "2 GPUs"):
        pick_device(name, local_rank)


def test_a_machine_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto", 0) == torch.device("cpu")
    with refuses("cuda"):
        pick_device("cuda", 0)


@pytest.mark.parametrize(
    ("variable", "ranks", "expected"),
    [(None, 1, 12), (None, 5, 2), (None, 99, 1), ("1", 1, 7), ("1", 4, 3), ("2", 4, 7)],
)
def test_ranks_share_the_cores(
    variable: str | None, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = [7]
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.append(count))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    set_threads(ranks)
    assert threads[-1] == expected


def test_several_ranks_cannot_share_one_named_device() -> None:
    environ = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    with refuses("auto, cpu or cuda", "2 ranks", "cuda:1"):
        with process_group("cuda:1", environ):
            pass
