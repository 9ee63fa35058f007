"""Every process of every run ends by itself, and leaves no thread of its group behind.

Where DDP's reducer outlives the process group, gloo's threads hang or abort the process at its
end, now and then: one run proves little, so there are several, and they are asked for threads.
"""

from __future__ import annotations

from pathlib import Path

from ranks import run_worker

TRIALS = 6


def test_trainings_on_two_ranks_end_cleanly(tmp_path: Path) -> None:
    trial = Path(__file__).with_name("clean_exit_trial.py")
    codes, err = run_worker(trial, str(TRIALS), str(tmp_path), timeout=120)
    assert codes == [0] * (2 * TRIALS), err
    assert "terminate called" not in err
