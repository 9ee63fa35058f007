"""SIGKILL at any moment of a save: what was saved before is there, whole, and saving goes on."""

from __future__ import annotations

import signal
from pathlib import Path

from ranks import run_worker

KILLS = 12


def test_a_killed_save_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    worker = Path(__file__).parent / "save_worker.py"
    told, err = run_worker(worker, str(tmp_path), str(KILLS), timeout=120)
    assert [code for code, _ in told["ends"]] == [-signal.SIGKILL] * KILLS, err
    # Not all kills met a save; that some did is what makes the test one.
    assert "saving" in {place for _, place in told["ends"]}
    assert told["step"] > 0, told
