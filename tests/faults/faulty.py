"""The ``quadriga`` command with one fault in it, at one step of one rank.

    python faulty.py FAULT RANK STEP FOLDER -- WORDS...

FAULT is what happens when rank RANK begins step STEP:
    kill     SIGKILL of the rank itself
    stop     SIGSTOP of the rank itself
    term     SIGTERM of the rank itself; usr1: SIGUSR1
    group    SIGTERM of the rank and of the processes it started, as a scheduler does it
    data     the data of the step never comes
    forward  the forward pass of the step never ends
Once only: the file FOLDER/fault is there afterwards.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil

from quadriga.cli.entry import main
from quadriga.data.reading.workers import BatchReader
from quadriga.methods.mae import MAE


def install(fault: str, rank: int, step: int, folder: Path) -> None:
    """Break the step."""
    if int(os.environ.get("RANK", "0")) != rank:
        return
    begin, forward, read = MAE.before_step, MAE.forward, BatchReader.__getitem__
    now = {"step": -1, "read": 0}

    def due(what: str, at: int) -> bool:
        if what != fault or at != step or (folder / "fault").exists():
            return False
        (folder / "fault").touch()
        return True

    def broken_begin(self, progress):
        now["step"] = progress.step
        signals = {
            "kill": signal.SIGKILL,
            "stop": signal.SIGSTOP,
            "term": signal.SIGTERM,
            "usr1": signal.SIGUSR1,
        }
        if fault in signals and due(fault, progress.step):
            os.kill(os.getpid(), signals[fault])
        if due("group", progress.step):
            for process in [*psutil.Process().children(recursive=True), psutil.Process()]:
                process.send_signal(signal.SIGTERM)
        return begin(self, progress)

    def broken_forward(self, batch):
        if due("forward", now["step"]):
            time.sleep(600)
        return forward(self, batch)

    def broken_read(self, request):
        now["read"] += 1
        if due("data", now["read"] - 1):
            time.sleep(600)
        return read(self, request)

    MAE.before_step, MAE.forward, BatchReader.__getitem__ = (
        broken_begin,
        broken_forward,
        broken_read,
    )


if __name__ == "__main__":
    cut = sys.argv.index("--")
    install(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    sys.argv = ["quadriga", *sys.argv[cut + 1 :]]
    main()
