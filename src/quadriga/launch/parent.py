"""Processes that end with the one that has started them, also when that one is killed.

Nothing here imports torch: it is the first thing that a process does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping

WITH_PARENT = "QUADRIGA_WITH_PARENT"
"""Variable that asks a process, and those that it starts, to end with its parent: the number of
the process that has set it."""

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 1.0


def end_with_parent(environ: Mapping[str, str]) -> None:
    """Where the environment asks for it, be killed as soon as the parent process is gone.

    The kernel sees to it on Linux; elsewhere a thread looks every second. What a run has saved is
    whole at any moment, so that nothing is lost but the steps since.
    """
    asked_by = environ.get(WITH_PARENT)
    if asked_by is None:
        return
    parent = os.getppid()
    if "RANK" not in environ and asked_by != str(parent):  # it was gone before this began
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it went before the kernel knew
            os.kill(os.getpid(), signal.SIGKILL)
        return
    threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
