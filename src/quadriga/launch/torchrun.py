"""Several ranks on this machine, through torchrun, with one exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import final

import psutil
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from quadriga.engine.faults.preemption import ONCE_MORE, SIGNALS, handling
from quadriga.engine.logs.environment import cores
from quadriga.errors import INTERRUPTED
from quadriga.launch.attempts import FINAL, RESTARTS

_OURS = "--signals-to-handle"


def torchrun_arguments(ranks: int, arguments: Sequence[str], module: str) -> list[str]:
    """Return torchrun's arguments for a module's command on this machine alone.

    Args:
        ranks: Number of processes.
        arguments: The command line after ``python -m MODULE``.
        module: What every rank runs.
    """
    # Standalone: a free port is found, so that two runs on one machine do not meet.
    options = ["--standalone", f"--nproc-per-node={ranks}"]
    if _OURS in torchrun.get_args_parser()._option_string_actions:
        # Without SIGTERM and SIGINT, which this module hands on: torchrun would kill the ranks 30
        # seconds later, while they save, and would not tell what they ended with.
        options.append(f"{_OURS}=SIGHUP,SIGQUIT")
    # torchrun fills in its variables in them: $$ stands for $.
    return [*options, "--module", module, *(word.replace("$", "$$") for word in arguments)]


@final
class _HandOn:
    """Context in which the signals that stop a run are handed on to this process's ranks.

    Ctrl-C reaches this process alone, since each rank has a session of its own. It is handed on as
    SIGTERM, which a rank that has no handler yet does not answer with a traceback. A second Ctrl-C
    kills the ranks.
    """

    def __init__(self) -> None:
        self.asked = self.interrupted = False

    def installed(self) -> AbstractContextManager[None]:
        """Return the context; outside the main thread it changes nothing."""
        return handling(SIGNALS, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        handed_on = number
        if number == signal.SIGINT:
            handed_on = signal.SIGKILL if self.interrupted else signal.SIGTERM
            if not self.interrupted:
                os.write(2, ONCE_MORE)
            self.interrupted = True
        self.asked = True
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if "RANK" in child.environ():
                    child.send_signal(handed_on)


def run_ranks(
    ranks: int, arguments: Sequence[str], max_restarts: int = 0, module: str = "quadriga"
) -> int:
    """Run a module's command on several ranks of this machine and wait for them.

    SIGTERM, SIGUSR1 and Ctrl-C are handed on to the ranks, which save and end; they are waited for.

    Args:
        ranks: Number of processes; the machine's cores are shared between them.
        arguments: The command line after ``python -m MODULE``.
        max_restarts: How often all ranks are started again when one has failed; they go on with
            the newest checkpoint. What the user must mend, and a run that was asked to stop, is
            not started again. Here and not in torchrun, which would do so.
        module: What every rank runs.

    Returns:
        The exit code: 0, or that of the first rank that failed, 128 + n for signal n; 130 after a
        Ctrl-C that the ranks did not save.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // ranks)))
    # The rank that failed has said why, in one line; the agent would add a page.
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    hand_on = _HandOn()
    with hand_on.installed():
        for attempt in range(max_restarts + 1):
            os.environ[RESTARTS] = str(attempt)
            try:
                code = _run_once(torchrun_arguments(ranks, arguments, module))
            finally:
                del os.environ[RESTARTS]
            final = code in (0, INTERRUPTED, *FINAL) or hand_on.asked
            if final or attempt == max_restarts:
                break
            print(
                f"warning: a rank ended with exit code {code}; all are started again and resume "
                f"(restart {attempt + 1} of {max_restarts})",
                file=sys.stderr,
                flush=True,
            )
    return INTERRUPTED if hand_on.interrupted and code > 128 else code


def _run_once(arguments: Sequence[str]) -> int:
    try:
        torchrun.run(torchrun.parse_args(arguments))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        # What one rank has said in a sentence, another may have met as a lost connection.
        first = min(error.failures.values(), key=lambda f: (f.exitcode not in FINAL, f.timestamp))
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return 128 + error.sigval.value
    return 0
