"""Output for the user: a progress bar on a terminal, plain lines elsewhere, log.txt always."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from quadriga.errors import short_line


class Console:
    """Prints messages on rank 0, and warnings on every rank."""

    def __init__(self, active: bool = True) -> None:
        """Start; `active` is whether this rank prints messages."""
        self._active = active
        self._log: IO[str] | None = None
        self._rich = RichConsole(highlight=False, soft_wrap=True)
        self._live = active and self._rich.is_terminal
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Return itself; `__exit__` closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Call `close`."""
        self.close()

    def open_log(self, path: Path) -> None:
        """Append all further output to `path` as well."""
        if self._active:
            self._log = path.open("a", encoding="utf-8", errors="backslashreplace")

    def say(self, text: str) -> None:
        """Print a line."""
        self._write(text)
        if self._active:
            if self._live:
                self._rich.print(text, markup=False)
            else:
                self._print(text)

    def _print(self, text: str) -> None:
        """Print to standard output until its reader ends, as in `quadriga train ... | head`."""
        try:
            print(text, flush=True)
        except BrokenPipeError:
            # A long training must not end because of this. Buffered and further output is
            # discarded; log.txt has it.
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())

    def line(self, text: str) -> None:
        """Print a line of progress to the log, and to the screen unless a bar shows it."""
        if self._live:
            self._write(text)
        else:
            self.say(text)

    def warn(self, text: str) -> None:
        """Print a warning to standard error, on every rank, because ranks see different causes."""
        line = short_line(f"warning: {text}")
        self._write(line)
        print(line, file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        if self._log is None:
            return
        try:
            self._log.write(f"{text}\n")
            self._log.flush()
        except OSError as error:
            # The log only repeats the screen, so its failure does not end the run.
            self._close_log()
            self.warn(f"log.txt ends here, it cannot be written: {error.strerror}")

    def _close_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            with contextlib.suppress(OSError):  # a full disk was already reported by `_write`
                log.close()

    def advance(self, what: str, done: int, total: int, status: str = "") -> None:
        """Move the bar named `what`; without a terminal print a line per quarter of the work.

        Args:
            what: Name of the work: "train", "features of the test set". "train" prints no lines.
            done: Finished units.
            total: All units.
            status: Text beside the bar.
        """
        if self._live:
            progress = self._bars()
            if what not in self._tasks:
                self._tasks[what] = progress.add_task(what, total=total, status=status)
            progress.update(self._tasks[what], completed=done, status=status)
            if done >= total:
                progress.remove_task(self._tasks.pop(what))
        elif what != "train":
            quarter = 4 * done // max(1, total)
            if quarter > self._said.get(what, 0):
                self._said[what] = quarter % 4
                self.say(f"{what}: {done}/{total}")

    def _bars(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=self._rich,
                transient=True,
            )
            self._progress.start()
        return self._progress

    def close(self) -> None:
        """Remove the bars and close the log."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()
        self._close_log()
