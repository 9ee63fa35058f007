"""Interrupting a run of `quadriga verify-resume`: its processes, and the signals they get."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Sequence

import psutil

from quadriga.verify_resume.compare import Kill


def family_of(pid: int) -> list[psutil.Process]:
    """Return all processes below a process that lives."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def interrupt(
    process: subprocess.Popen[bytes], family: Sequence[psutil.Process], kill: Kill
) -> str:
    """Send the signal; return its name and whom it met."""
    if kill.how == "term":
        process.send_signal(signal.SIGTERM)
        return "SIGTERM"
    ranks = ranks_of(family)
    if kill.how == "rank" and ranks:
        rank = sorted(ranks)[int(kill.draw * len(ranks))]
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            ranks[rank].kill()
        return f"SIGKILL of rank {rank}"
    process.kill()
    end(family)  # what a scheduler does with the rest of a job whose first process is gone
    return "SIGKILL of the launcher" if ranks else "SIGKILL"


def ranks_of(family: Sequence[psutil.Process]) -> dict[int, psutil.Process]:
    """Return the first process of each rank: the data workers have its variables as well."""
    found: dict[int, psutil.Process] = {}
    for process in family:
        with contextlib.suppress(psutil.Error):
            environ = process.environ()
            if environ.get("RANK", "").isdecimal():
                known = found.setdefault(int(environ["RANK"]), process)
                if process.create_time() < known.create_time():
                    found[int(environ["RANK"])] = process
    return found


def end(family: Sequence[psutil.Process]) -> None:
    """Kill processes, and wait until they are gone."""
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(list(family), timeout=10)
