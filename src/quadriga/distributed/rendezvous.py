"""The store in which the ranks of a run meet, before they form their process group.

torch waits for other ranks in silence, for as long as a collective may take. Here a rank says whom
it waits for, and gives up after minutes. It tries the address with a plain connection first, since
torch answers a failed one with pages of C++ frames.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import final

import torch.distributed as dist

from quadriga.distributed.environment import RENDEZVOUS_FILE, Launch
from quadriga.errors import UserError

JOIN_MINUTES = 5.0
"""Default limit of the time that ranks wait for each other."""

SILENT_SECONDS = 5.0
"""Waiting is not mentioned before."""

AGAIN_SECONDS = 60.0
"""Time between two lines about waiting."""

_TRY_SECONDS = 20.0


@final
class _Wait:
    """The waiting of one rank, which says so on the console of its host and ends at a time."""

    def __init__(self, launch: Launch, where: str, minutes: float) -> None:
        self._launch, self._where, self._minutes = launch, where, minutes
        self._since, self._clock = time.monotonic(), time.strftime("%H:%M:%S")
        self._next = self._since + SILENT_SECONDS

    @property
    def left(self) -> float:
        """Seconds until the end of the waiting."""
        return self._since + 60 * self._minutes - time.monotonic()

    def pause(self, whom: Callable[[], str]) -> None:
        """Sleep for a moment; if the waiting has taken long, say whom it is for.

        Raises:
            UserError: The time is over.
        """
        launch, now = self._launch, time.monotonic()
        if self.left <= 0:
            over = UserError(
                f"rank {launch.rank} of {launch.world_size} has waited {self._minutes:g} minutes "
                f"at {self._where} for {whom()}; start all ranks, check MASTER_ADDR and "
                "MASTER_PORT, or raise health.join_minutes"
            )
            over.on_every_rank = launch.local_rank != 0  # one line on each host
            raise over
        if launch.local_rank == 0 and now >= self._next:
            self._next = now + AGAIN_SECONDS
            print(
                f"rank {launch.rank} of {launch.world_size} waits at {self._where} for {whom()}, "
                f"since {self._clock} and for {self._minutes:g} minutes at most",
                flush=True,
            )
        time.sleep(min(0.2, 0.005 + (now - self._since) / 20, max(0.0, self.left)))


def meet(
    launch: Launch, environ: Mapping[str, str], minutes: float, timeout: timedelta
) -> dist.Store:  # type: ignore[name-defined]
    """Return the store of this attempt, after every rank of the run has entered it.

    Args:
        launch: This process, one of several.
        environ: The environment variables, with MASTER_ADDR and MASTER_PORT.
        minutes: How long the ranks wait for each other.
        timeout: How long the store may take to answer afterwards.

    Raises:
        UserError: The variables are missing or contradict each other, the port is taken, or the
            other ranks have not come.
    """
    if (file := environ.get(RENDEZVOUS_FILE)) is not None:
        # The ranks of one machine, a new file for each attempt: nothing listens.
        attempt, wait = "0", _Wait(launch, file, minutes)
        whole: dist.Store = dist.FileStore(file, launch.world_size)  # type: ignore[name-defined, attr-defined]
    else:
        address, port = _place(launch, environ)
        attempt, wait = _attempt(environ), _Wait(launch, f"{address}:{port}", minutes)
        serves = launch.rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        get = _serve if serves else _reach
        whole = get(launch, address, port, wait)
    whole.set_timeout(timeout)
    store = dist.PrefixStore(f"quadriga/attempt_{attempt}", whole)  # type: ignore[attr-defined]
    names = [f"joined/{rank}" for rank in range(launch.world_size)]
    store.set(names[launch.rank], "")
    if store.add("number", 1) == launch.world_size:
        store.set("complete", "")
    while not store.check(["complete"]):
        wait.pause(lambda: _ranks([r for r, name in enumerate(names) if not store.check([name])]))
    return store


def _place(launch: Launch, environ: Mapping[str, str]) -> tuple[str, int]:
    absent = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environ]
    if absent:
        raise UserError(
            f"{launch.world_size} processes meet at MASTER_ADDR and MASTER_PORT, but "
            f"{' and '.join(absent)} is not set; start with torchrun or export it"
        )
    port = environ["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"MASTER_PORT must be a number from 1 to 65535, but is {port!r}; export it")
    return environ["MASTER_ADDR"], int(port)


def _attempt(environ: Mapping[str, str]) -> str:
    """Return the number of this attempt on all hosts.

    torchrun lends its workers its own store. After a restart it still holds the addresses of the
    ranks that have died, which the new ones would wait for (pytorch issue 135712).

    Raises:
        UserError: The store would be lent again, to ranks that cannot agree on a number.
    """
    lent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not lent or environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return "0"
    if environ.get("GROUP_WORLD_SIZE", "1") != "1":
        # Each host's torchrun counts only its own restarts, so the count is no common prefix.
        unset = UserError(
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE must be 1 in torchrun's environment when it is to "
            "restart ranks of several hosts, but is not set; export it on every host, or leave "
            "out --max-restarts"
        )
        unset.on_every_rank = True
        raise unset
    return environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _serve(launch: Launch, address: str, port: int, wait: _Wait) -> dist.Store:  # type: ignore[name-defined]
    """Return the store of rank 0, which listens on all interfaces."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        listening = socket.create_server(
            ("", port), family=family, backlog=4096, dualstack_ipv6=dual
        )
    except OSError as error:
        raise UserError(
            f"port {port} must be free on the host of rank 0, but: {error.strerror}; end what "
            "listens there, or choose another MASTER_PORT (--master_port) for all ranks"
        ) from error
    with listening:
        _try(address, port, wait, "the host of rank 0, which is this one")
        store = _store(launch, address, port, listening)
    if store is None:
        raise UserError(
            f"MASTER_ADDR must be an address of the host of rank 0, but is {address}, where "
            "something else answers"
        )
    return store


def _reach(launch: Launch, address: str, port: int, wait: _Wait) -> dist.Store:  # type: ignore[name-defined]
    """Return the store that rank 0, or torchrun, serves."""
    while True:
        _try(address, port, wait, "rank 0")
        store = _store(launch, address, port)
        if store is not None:
            return store
        wait.pause(lambda: "rank 0 (what answers is something else)")


def _try(address: str, port: int, wait: _Wait, whom: str) -> None:
    """Connect to the address, and close the connection, as soon as somebody listens there."""
    while True:
        try:
            with socket.create_connection((address, port), max(0.1, min(5.0, wait.left))):
                return
        except (OSError, UnicodeError) as error:  # UnicodeError: no host has such a name
            reason = getattr(error, "strerror", None) or str(error)
        wait.pause(lambda: f"{whom} ({reason})")  # noqa: B023


def _store(
    launch: Launch, address: str, port: int, listening: socket.socket | None = None
) -> dist.Store | None:  # type: ignore[name-defined]
    """Return a client of the store, on rank 0 with its server; None if something else answers."""
    try:
        with without_errors():
            return dist.TCPStore(  # type: ignore[attr-defined]
                address,
                port,
                launch.world_size,
                listening is not None,
                timedelta(seconds=_TRY_SECONDS),
                wait_for_workers=False,
                master_listen_fd=None if listening is None else listening.detach(),
            )
    except RuntimeError:  # the base of torch's network errors
        return None


@contextlib.contextmanager
def without_errors() -> Iterator[None]:
    """Return a context without standard error, to which torch writes the frames of a failure."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
