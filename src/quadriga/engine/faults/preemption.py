"""Stop signals: finish the step, save, and exit with a dedicated exit code.

Schedulers send SIGTERM some seconds before SIGKILL, and on request SIGUSR1 minutes before
(``#SBATCH --signal=USR1@120``); a person presses Ctrl-C. All of them only set a flag. The flag is
reduced over the ranks with the sums of a step, so all ranks stop after the same step. A second
Ctrl-C ends the process at once. Other repeated signals are ignored, so that a save is finished.

During an evaluation the state may be saved already (`Preemption.leave_at_once`): then the run ends
at once, and ``--resume`` repeats the evaluation.

The handlers are installed once the process group is formed. Until then signals keep their default
action, since a process that waits for others inside C++ cannot run a handler.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Self, final

from quadriga.errors import INTERRUPTED

INTERRUPT_FROM_PARENT = signal.SIGUSR2
"""How a launcher hands on a Ctrl-C: it ends a process that has no handlers yet without a word,
where Python answers SIGINT with a traceback, and a run tells it from a scheduler's SIGTERM."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, INTERRUPT_FROM_PARENT)
"""Signals that make a run save and stop."""

ONCE_MORE = b"stopping after this step, which is saved; Ctrl-C again leaves at once\n"
"""Printed at the first Ctrl-C."""

LOST = b"interrupted; the steps since the newest checkpoint are lost\n"
"""Printed at the second Ctrl-C."""


@contextlib.contextmanager
def handling(
    numbers: Iterable[signal.Signals], handle: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Return a context in which `handle` handles the signals; it restores the handlers at its end.

    Outside the main thread it changes nothing. A SIGINT that is ignored stays so: a shell starts
    background jobs like that, which Ctrl-C in their terminal does not concern.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, handle)
        for number in numbers
        if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: the handler was not installed from Python, so it cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Preempted(BaseException):
    """The run has saved and ends because of a signal; not an error, hence not an `Exception`."""

    on_every_rank = False
    """Whether every rank raises it, after the same step."""

    def __init__(self, step: int, signal_name: str) -> None:
        """Store the number of finished steps and the signal's name."""
        super().__init__(
            f"stopped by {signal_name} after step {step}, which is saved; "
            "the same command with --resume continues"
        )
        self.step = step
        self.signal_name = signal_name


@final
class Preemption:
    """Context whose `install` lets stop signals set a flag; it restores the handlers at its end."""

    def __init__(self) -> None:
        """Clear the flag."""
        self.asked = False
        """Whether this process has received a stop signal."""
        self.signal_name = "a signal to another rank"
        """Name of the signal, for the message."""
        self._handlers = contextlib.ExitStack()
        self._process = 0
        self._interrupted = False
        self._saved_step: int | None = None
        self._leaving = False

    def __enter__(self) -> Self:
        """Return itself; signals keep their action until `install`."""
        return self

    def install(self) -> None:
        """Install the handlers; outside the main thread the flag is never set."""
        self._process = os.getpid()
        self._handlers.enter_context(handling(SIGNALS, self._handle))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the previous handlers."""
        self._handlers.close()

    def preempted(self, step: int, on_every_rank: bool = True) -> Preempted:
        """Return the exception that ends the run after `step` finished and saved steps."""
        self._leaving = True  # ignore the launcher's signals to the remaining ranks
        stopped = Preempted(step, self.signal_name)
        stopped.on_every_rank = on_every_rank
        return stopped

    @contextlib.contextmanager
    def leave_at_once(self, saved_step: int | None) -> Iterator[None]:
        """Return a context in which a stop signal ends the run at once.

        Args:
            saved_step: Number of finished steps in the newest checkpoint. None if the last step is
                not saved: the signal then only sets the flag.

        Raises:
            Preempted: A signal arrived before or inside the context. Raised on this rank alone;
                the launcher ends the others.
        """
        self._saved_step = saved_step
        try:
            if saved_step is not None and self.asked:
                raise self.preempted(saved_step, on_every_rank=False)
            yield
        finally:
            self._saved_step = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a fork that reads data, before it ignores the signals
        if number == signal.SIGINT:
            if self._interrupted:
                os.write(2, LOST)
                os._exit(INTERRUPTED)
            self._interrupted = True
        if self._leaving or self.asked:
            return
        self.asked = True
        sent = signal.SIGINT if number == INTERRUPT_FROM_PARENT else signal.Signals(number)
        self.signal_name = sent.name
        if self._saved_step is not None:
            raise self.preempted(self._saved_step, on_every_rank=False)
        if number == signal.SIGINT:
            os.write(2, ONCE_MORE)
