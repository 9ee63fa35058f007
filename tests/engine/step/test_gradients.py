"""The sum over replicas is that of all ranks' gradients, whichever parameters each rank used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gradient_sum_worker import LATE_SECONDS

from ranks import run_ranks

HERE = Path(__file__).resolve().parent


def test_all_ranks_are_summed_and_a_late_rank_is_seen(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "gradient_sum_worker.py"), str(tmp_path)]
    for rank, result in enumerate(run_ranks(command, world_size := 3, timeout=120)):
        assert result.returncode == 0, result.stderr
        found = json.loads((tmp_path / f"rank_{rank}.json").read_text())
        assert found["summed"] == [True, True]
        if rank == 0:  # waits for all the others
            assert found["waited"][1] > 0.9 * LATE_SECONDS * (world_size - 2)
