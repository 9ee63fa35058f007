"""SIGKILL at any moment of a save: what was saved before is there, whole, and saving goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

KILLS = 12


def test_a_killed_save_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "save_worker.py"), str(tmp_path), str(KILLS)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its forks as well
    assert process.returncode == 0, err
    told = json.loads(out.splitlines()[-1])
    assert [code for code, _ in told["ends"]] == [-signal.SIGKILL] * KILLS, (out, err)
    # Not all kills met a save; that some did is what makes the test one.
    assert "saving" in {place for _, place in told["ends"]}
    assert told["step"] > 0, out
