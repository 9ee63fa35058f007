"""A launcher ends the other ranks once one has left: where all end, none leaves before rank 0."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ranks import run_ranks

HERE = Path(__file__).resolve().parent


def times(folder: Path, kind: str) -> dict[str, float]:
    """Run two ranks that end in this way; return when each of them was how far."""
    worker = [sys.executable, str(HERE / "slow_farewell_worker.py"), str(folder), kind]
    assert all(rank.returncode for rank in run_ranks(worker, 2, timeout=60))
    return {path.name: float(path.read_text()) for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("kind", ["error", "stop"])
def test_what_all_ranks_end_with_ends_when_rank_0_is_ready(tmp_path: Path, kind: str) -> None:
    found = times(tmp_path, kind)
    assert found["left_1"] >= found["finished"]


def test_the_replay_file_is_waited_for(tmp_path: Path) -> None:
    found = times(tmp_path, "replay")
    assert found["written_1"] >= found["written_0"] - 0.5  # not the three seconds before it


def test_an_error_of_one_rank_waits_for_nobody(tmp_path: Path) -> None:
    found = times(tmp_path, "lone")
    assert found["left_1"] < found["finished"]
