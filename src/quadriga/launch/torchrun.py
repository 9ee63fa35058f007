"""Several ranks of one machine, started by torch's elastic agent, with one exit code.

No store listens on the network. torch's own rendezvous backends serve a TCPStore on every
interface, which asks nobody for a password and whose values the agent unpickles. Here the agent,
alone with its ranks, keeps its store in memory, and the ranks meet in a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import final

import psutil
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from quadriga.distributed.environment import LOOPBACK, RENDEZVOUS_FILE
from quadriga.engine.faults.preemption import (
    INTERRUPT_FROM_PARENT,
    ONCE_MORE,
    SIGNALS,
    handling,
)
from quadriga.engine.logs.environment import cores
from quadriga.errors import INTERRUPTED
from quadriga.launch.attempts import FINAL, RESTARTS, WITH_PARENT


@final
class _OneAgent(RendezvousHandler):
    """The rendezvous of an agent that no other joins: its store is in its own memory."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id

    @property
    def use_agent_store(self) -> bool:
        return False  # it cannot be reached from a rank

    def get_backend(self) -> str:
        return "local"

    def next_rendezvous(self) -> RendezvousInfo:
        # The agent hands address and port to its ranks, which have no use for them.
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("127.0.0.1", 1))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


rendezvous_handler_registry.register("local", _OneAgent)


@final
class _HandOn:
    """Context in which the signals that stop a run are handed on to this process's ranks.

    Ctrl-C reaches this process alone, since each rank has a session of its own. A second Ctrl-C
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
            handed_on = signal.SIGKILL if self.interrupted else INTERRUPT_FROM_PARENT
            if not self.interrupted:
                os.write(2, ONCE_MORE)
            self.interrupted = True
        self.asked = True
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if "RANK" in child.environ():
                    child.send_signal(handed_on)


def run_ranks(
    ranks: int,
    arguments: Sequence[str],
    max_restarts: int = 0,
    module: str = "quadriga",
    alone: bool = True,
) -> int:
    """Run a module's command on several ranks of this machine and wait for them.

    SIGTERM, SIGUSR1 and Ctrl-C are handed on to the ranks, which save and end; they are waited for.
    If this process is killed, the ranks end with it.

    Args:
        ranks: Number of processes; the machine's cores are shared between them.
        arguments: The command line after ``python -m MODULE``.
        max_restarts: How often all ranks are started again when one has failed; they go on with
            the newest checkpoint. What the user must mend, and a run that was asked to stop, is
            not started again. Here and not in torch's agent, which would do so.
        module: What every rank runs.
        alone: Whether these are all ranks of the run. They then meet in a file and talk over the
            loopback interface; otherwise MODULE says where they meet.

    Returns:
        The exit code: 0, or that of the first rank that failed, 128 + n for signal n; 130 after a
        Ctrl-C that the ranks did not save.
    """
    # The rank that failed has said why, in one line; the agent would add a page.
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    hand_on = _HandOn()
    with hand_on.installed():
        for attempt in range(max_restarts + 1):
            code = _run_once(ranks, arguments, module, attempt, alone)
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


def _run_once(ranks: int, arguments: Sequence[str], module: str, attempt: int, alone: bool) -> int:
    """Start all ranks once and wait for them; return the exit code."""
    # A folder of this user's alone (mode 0700), and a new one for each attempt: the file of an
    # earlier one holds the addresses of ranks that have died.
    with tempfile.TemporaryDirectory(prefix="quadriga-ranks-") as folder:
        variables = {"OMP_NUM_THREADS": str(max(1, cores() // ranks))}
        if alone:
            variables |= LOOPBACK
        variables |= os.environ
        variables |= {RESTARTS: str(attempt), WITH_PARENT: str(os.getpid())}
        if alone:
            variables[RENDEZVOUS_FILE] = str(Path(folder, "rendezvous"))
        try:
            with _environment(variables):
                # The agent fills in its variables in the words: $$ stands for $.
                words = [word.replace("$", "$$") for word in arguments]
                # -P: the current folder is no place to import from.
                words = ["-u", "-P", "-m", module, *words]
                launch_agent(launch_config(ranks, folder), sys.executable, words)
        except ChildFailedError as error:
            # What one rank has said in a sentence, another may have met as a lost connection.
            first = min(
                error.failures.values(), key=lambda f: (f.exitcode not in FINAL, f.timestamp)
            )
            return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
        except SignalException as error:
            return 128 + error.sigval.value
    return 0


def launch_config(ranks: int, folder: str) -> LaunchConfig:
    """Return the agent's settings: one machine, no restart of its own, files in `folder`."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="local",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )
    if any(field.name == "signals_to_handle" for field in dataclasses.fields(config)):
        # Without SIGTERM and SIGINT, which this module hands on: the agent would kill the ranks 30
        # seconds later, while they save, and would not tell what they ended with.
        config.signals_to_handle = "SIGHUP,SIGQUIT"
    return config


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Return a context with these environment variables, which the agent hands to its ranks."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
