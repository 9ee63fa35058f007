"""How a process that reads data lives and dies: with its parent, not with a signal to all.

A scheduler signals every process of a job. The training process then finishes its step and saves;
a worker that died of the same signal would take the step with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

_SECONDS = 1.0


def outlive_signals(worker: int) -> None:
    """Ignore SIGTERM and SIGUSR1 from here on, and end when the parent has ended.

    Args:
        worker: Number of the worker; not used.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    # An orphan that waits for requests ends by itself; one that is stuck in a read does not.
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os._exit(1)


def kill_workers(workers: Sequence[BaseProcess]) -> None:
    """End the workers that still run, whatever they do; SIGTERM does not end them."""
    for worker in workers:
        # Of another process: a fork of the parent inherits the list, not the children.
        with contextlib.suppress(AssertionError, ValueError):
            if worker.is_alive():
                worker.kill()
