"""A rank that leaves alone does not wait for the others, which may be waiting for it in NCCL."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import pytest
import torch

from quadriga.distributed.process_group import process_group
from quadriga.errors import UserError

MODULE = "quadriga.distributed.process_group"
RANK = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


class Group:
    """What `process_group` calls of torch.distributed."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: self.calls.append(name)


@pytest.mark.parametrize(
    ("device", "kind", "calls"),
    [
        ("cuda:1", "none", ["barrier", "destroy_process_group"]),
        ("cuda:1", "lone", []),
        ("cuda:1", "all", ["all_gather_object", "destroy_process_group"]),
        ("cpu", "lone", ["destroy_process_group"]),
    ],
)
def test_who_leaves_alone_destroys_no_communicator(
    monkeypatch: pytest.MonkeyPatch, device: str, kind: str, calls: list[str]
) -> None:
    group, place = Group(), torch.device(device)
    monkeypatch.setattr(f"{MODULE}.dist", group)
    monkeypatch.setattr(f"{MODULE}.distributed_c10d", Group())
    monkeypatch.setattr(f"{MODULE}.pick_device", lambda name, rank: place)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(f"{MODULE}.meet", lambda *arguments: None)
    error = UserError("its data cannot be read")
    error.on_every_rank = kind == "all"
    expected = contextlib.nullcontext() if kind == "none" else pytest.raises(UserError)
    with expected, process_group("auto", RANK):
        if kind != "none":
            raise error
    assert [call for call in group.calls if call != "init_process_group"] == calls


@pytest.mark.parametrize("fault", ["UserError('no')", "ZeroDivisionError('no')"])
def test_a_process_whose_group_is_left_behind_ends_at_once(fault: str) -> None:
    """What runs at the end of the interpreter may wait for the other ranks."""
    code = (
        "import atexit, sys\n"
        "import torch.distributed as dist\n"
        "from quadriga.cli import main, entry\n"
        "from quadriga.errors import UserError\n"
        "def app(**named):\n"
        "    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        f"    raise {fault}\n"
        "main.app = app\n"
        "atexit.register(lambda: print('at exit'))\n"
        "sys.argv = ['quadriga', 'train']\n"
        "entry.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "no" in done.stderr
    assert (done.returncode, done.stdout) == (2 if "User" in fault else 1, "")
