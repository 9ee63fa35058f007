"""Restarts by torchrun: the number of this attempt and the exit code of an earlier one.

torchrun restarts its workers after any failure, even one that will only repeat itself, and has no
exit code that prevents it. torchrun also gives every worker the path of an error file, below a
folder of this torchrun on this host. A rank writes its exit code beside the attempts' folders, and
the ranks of later attempts exit with it at once, before they import torch.

The module also makes a process end with its parent, even if the parent is killed.

Nothing here imports torch, because this code runs before everything else.
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
"""Exit codes after which another attempt is useless."""

RESTARTS = "QUADRIGA_RESTARTS"
"""Variable in which ``quadriga train --max-restarts`` passes the number of restarts to ranks."""


def restarts(environ: Mapping[str, str]) -> int:
    """Return how often the launcher has restarted this run's ranks."""
    counts = (environ.get(name, "0") for name in (RESTARTS, "TORCHELASTIC_RESTART_COUNT"))
    return max(int(count) if count.isdecimal() else 0 for count in counts)


def _verdict(environ: Mapping[str, str]) -> Path | None:
    """Return the path in torchrun's folder for the exit code, which outlives an attempt.

    TORCHELASTIC_ERROR_FILE is .../RUN/attempt_0/RANK/error.json. None without torchrun.
    """
    told = Path(environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return told.parents[2] / "quadriga_exit_code" if len(told.parents) > 3 else None


def remember(code: int, environ: Mapping[str, str]) -> None:
    """Write a final exit code for later attempts; without torchrun, do nothing."""
    path = _verdict(environ)
    if path is not None and code in FINAL:
        with contextlib.suppress(OSError):  # then the next attempt repeats the error
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
"""Variable that makes a process end with its parent. Its value is the process id of the parent."""

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 1.0


def end_with_parent(environ: Mapping[str, str]) -> None:
    """Kill this process when its parent ends: a process that sets `WITH_PARENT`, or torchrun.

    On Linux the kernel sends SIGKILL; elsewhere a thread polls every second. Checkpoints are
    complete at any moment, so only the steps since the last one are lost.
    """
    asked_by = environ.get(WITH_PARENT)
    if asked_by is None and "TORCHELASTIC_RUN_ID" not in environ:
        return
    parent = os.getppid()
    if asked_by is not None and asked_by != str(parent):  # the parent ended before this call
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before prctl took effect
            os.kill(os.getpid(), signal.SIGKILL)
        return
    threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
