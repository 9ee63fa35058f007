"""Parameters cut over two processes take the steps of whole ones, with every optimizer."""

from __future__ import annotations

import sys
from pathlib import Path

from quadriga.config.base import kinds
from quadriga.contracts import OptimizerConfig
from ranks import run_ranks

WORKER = Path(__file__).with_name("sharded_worker.py")


def test_two_shards_are_one_whole() -> None:
    names = kinds(OptimizerConfig)  # type: ignore[type-abstract]
    for process in run_ranks([sys.executable, str(WORKER), *names], world_size=2):
        assert process.returncode == 0, process.stderr
        assert process.stdout.splitlines() == [f"equal {name}" for name in names]
