"""The timer changes no bit of a reduction, and counts the wait that a late rank causes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from communication_worker import LATE_SECONDS
from torch import nn

from quadriga.engine.meters.throughput import CommunicationTimer
from ranks import run_ranks

HERE = Path(__file__).resolve().parent


def test_the_reduction_is_bit_equal_and_a_late_rank_is_seen(tmp_path: Path) -> None:
    world_size = 3  # dividing by 3 and multiplying by a third are not the same to the bit
    command = [sys.executable, str(HERE / "communication_worker.py"), str(tmp_path)]
    for result in run_ranks(command, world_size, timeout=120):
        assert result.returncode == 0, result.stderr
    for rank in range(world_size):
        found = json.loads((tmp_path / f"rank_{rank}.json").read_text())
        assert found["equal_1"]
        assert found["equal_2"]
        if rank == 0:  # waits for all the others
            assert found["waited"][1] > 0.9 * LATE_SECONDS


def test_one_process_measures_nothing() -> None:
    timer = CommunicationTimer(nn.Linear(2, 2), torch.device("cpu"))
    timer.backward_ended()
    assert timer.take_seconds() is None
