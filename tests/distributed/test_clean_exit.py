"""Every process of every run ends by itself, and leaves no thread of its group behind.

Where DDP's reducer outlives the process group, gloo's threads hang or abort the process at its
end, now and then: one run proves little, so there are several, and they are asked for threads.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
TRIALS = 6


def test_trainings_on_two_ranks_end_cleanly(tmp_path: Path) -> None:
    trial = str(Path(__file__).parent / "clean_exit_trial.py")
    paths = [TESTS, os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, trial, str(TRIALS), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the ranks are forks of it
    assert process.returncode == 0, err
    assert json.loads(out) == [0] * (2 * TRIALS), err
    assert "terminate called" not in err
