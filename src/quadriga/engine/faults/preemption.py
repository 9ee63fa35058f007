"""A signal asks the run to stop: finish the step, save, and leave with an exit code of its own.

SIGTERM is what schedulers send some seconds before SIGKILL; SIGUSR1 is what they can be told to
send minutes before (``#SBATCH --signal=USR1@120``). Both only set a flag. The ranks agree on it
with the sums of a step, so all of them stop after the same one.

While the run evaluates, its state is usually saved already (`Preemption.leave_at_once`): then there
is no step to wait for, and the run ends where it stands. What an evaluation would have found is
made up for after ``--resume``. A save that is being written is always finished first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Self, final

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a run to save and stop."""

ECHO_SECONDS = 5.0
"""A SIGTERM that follows another within this time is its echo: a scheduler signals the launcher
and the ranks, and the launcher hands on what it got."""

_KILLED = 128


@contextlib.contextmanager
def handling(
    numbers: Iterable[signal.Signals], handle: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Return a context in which signals are handled; the handlers before it come back after.

    Outside the main thread it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: a handler that was not installed from Python, and cannot be from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Preempted(BaseException):
    """The run has saved and ends because it was asked to; no error, so no `Exception`."""

    on_every_rank = False
    """Whether every rank ends so, after the same step."""

    def __init__(self, step: int, signal_name: str) -> None:
        """Say after which step (the number of finished ones), and who asked."""
        super().__init__(
            f"stopped by {signal_name} after step {step}, which is saved; "
            "the same command with --resume continues"
        )
        self.step = step
        self.signal_name = signal_name


@final
class Preemption:
    """Context in which SIGTERM and SIGUSR1 set a flag; the handlers before it come back after."""

    def __init__(self) -> None:
        """Install nothing yet."""
        self.asked = False
        """Whether this process was asked to stop."""
        self.signal_name = "a signal to another rank"
        """What asked this process, for the user."""
        self._handlers = contextlib.ExitStack()
        self._terminated_at: float | None = None
        self._saved_step: int | None = None
        self._leaving = False

    def __enter__(self) -> Self:
        """Install the handlers, in the main thread; elsewhere nothing is ever asked."""
        self._handlers.enter_context(handling(SIGNALS, self._handle))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Bring back the handlers that were there."""
        self._handlers.close()

    def preempted(self, step: int, on_every_rank: bool = True) -> Preempted:
        """Return the exception that ends the run after `step` finished and saved steps."""
        self._leaving = True  # a launcher that ends the other ranks now has nothing to add
        stopped = Preempted(step, self.signal_name)
        stopped.on_every_rank = on_every_rank
        return stopped

    @contextlib.contextmanager
    def leave_at_once(self, saved_step: int | None) -> Iterator[None]:
        """Return a context in which being asked ends the run at once.

        Args:
            saved_step: The finished steps that the newest checkpoint holds; None when the last
                step is not saved: then the flag is set as ever and the context changes nothing.

        Raises:
            Preempted: The process was asked, before or inside; on this rank alone, whose leaving
                ends the others.
        """
        self._saved_step = saved_step
        try:
            if saved_step is not None and self.asked:
                raise self.preempted(saved_step, on_every_rank=False)
            yield
        finally:
            self._saved_step = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._leaving:
            return
        if number == signal.SIGTERM:
            if self._terminated_at is None:
                self._terminated_at = now
            elif now - self._terminated_at > ECHO_SECONDS:
                os._exit(_KILLED + number)
        if self.asked:
            return
        self.asked = True
        self.signal_name = signal.Signals(number).name
        if self._saved_step is not None:
            raise self.preempted(self._saved_step, on_every_rank=False)
