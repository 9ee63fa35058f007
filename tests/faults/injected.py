"""The command with a fault in it.

    python injected.py nan RANK STEP TIMES train mae_digits ...

``nan``: the loss of rank RANK is not a number at step STEP (from 0), the first TIMES times.
``worker``: rank RANK kills the workers that read its data when it begins step STEP.
``slow``: rank RANK takes STEP milliseconds longer to write a checkpoint.
``limit``: rank RANK can write no file of more than STEP KiB.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import Any

import psutil

from quadriga.cli.entry import run
from quadriga.contracts import Batch, LossOutput
from quadriga.engine.checkpoint.write import CheckpointWriter
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.methods.mae import MAE


def inject_nan(rank: int, step: int, times: int) -> None:
    """Make the loss of one rank not a number at one step."""
    if int(os.environ.get("RANK", "0")) != rank:
        return
    forward, begin = MAE.forward, PhaseTimer.begin_step
    now, left = [-1], [times]

    def watched(phase_timer: PhaseTimer, number: int) -> None:
        now[0] = number
        begin(phase_timer, number)

    def poisoned(objective: MAE, batch: Batch) -> LossOutput:
        output = forward(objective, batch)
        if now[0] != step or not left[0]:
            return output
        left[0] -= 1
        return LossOutput.of(output.only.total * float("nan"), output.only.targets, output.metrics)

    PhaseTimer.begin_step = watched  # type: ignore[method-assign]
    MAE.forward = poisoned  # type: ignore[method-assign, assignment]


def kill_worker(rank: int, step: int, times: int) -> None:
    """Kill the processes that read a rank's data, at the beginning of one step."""
    begin = PhaseTimer.begin_step

    def killing(phase_timer: PhaseTimer, number: int) -> None:
        if number == step and int(os.environ.get("RANK", "0")) == rank:
            for child in psutil.Process().children():
                child.kill()
        begin(phase_timer, number)

    PhaseTimer.begin_step = killing  # type: ignore[method-assign]


def slow_save(rank: int, milliseconds: int, times: int) -> None:
    """Make a rank slow to write."""
    write = CheckpointWriter.write

    def slowly(writer: CheckpointWriter, *arguments: Any) -> Any:
        if int(os.environ.get("RANK", "0")) == rank:
            time.sleep(milliseconds / 1000)
        return write(writer, *arguments)

    CheckpointWriter.write = slowly  # type: ignore[method-assign, assignment]


def limit_files(rank: int, kib: int, times: int) -> None:
    """Limit the size of the files that one rank can write."""
    if int(os.environ.get("RANK", "0")) == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kib, 1024 * kib))


if __name__ == "__main__":
    fault, *numbers = sys.argv[1:5]
    faults = {"nan": inject_nan, "worker": kill_worker, "slow": slow_save, "limit": limit_files}
    faults[fault](*map(int, numbers))
    sys.exit(run(sys.argv[5:]))
