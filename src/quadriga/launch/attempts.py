"""Restarts by torchrun: which attempt this is, and what an earlier one ended with.

torchrun starts its workers again after any failure, also after one that will only repeat itself.
It has no exit code that says so. But every worker is told a file to write its error to, below a
folder of this torchrun on this host; beside the attempts' folders a rank leaves its exit code, and
the ranks of the next attempts end with it at once, before torch is imported.

Processes that end with the one that has started them, also when that one is killed.

Nothing here imports torch: it is the first thing that a process does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from quadriga.errors import EXIT_PREEMPTED, EXIT_USER_ERROR

FINAL = (EXIT_USER_ERROR, EXIT_PREEMPTED)
"""Exit codes after which another attempt is of no use."""

RESTARTS = "QUADRIGA_RESTARTS"
"""Variable in which ``quadriga train --max-restarts`` tells its ranks how often it restarted."""


def restarts(environ: Mapping[str, str]) -> int:
    """Return how often the launcher has started this run's ranks again."""
    counts = (environ.get(name, "0") for name in (RESTARTS, "TORCHELASTIC_RESTART_COUNT"))
    return max(int(count) if count.isdecimal() else 0 for count in counts)


def _verdict(environ: Mapping[str, str]) -> Path | None:
    """Return the file that outlives an attempt: .../RUN/attempt_0/RANK/error.json is told."""
    told = Path(environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return told.parents[2] / "quadriga_exit_code" if len(told.parents) > 3 else None


def remember(code: int, environ: Mapping[str, str]) -> None:
    """Leave a final exit code for the next attempts; without torchrun, do nothing."""
    path = _verdict(environ)
    if path is not None and code in FINAL:
        with contextlib.suppress(OSError):  # then the next attempt tells its error once more
            path.write_text(str(code), encoding="ascii")


def remembered(environ: Mapping[str, str]) -> int | None:
    """Return the final exit code that an earlier attempt on this host ended with, if any."""
    path = _verdict(environ)
    if path is None or restarts(environ) == 0:
        return None
    try:
        code = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return code if code in FINAL else None


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
