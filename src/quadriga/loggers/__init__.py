"""Loggers send a run's metrics to other places, one file each; `LoggerSet` holds those of a run."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import final

from quadriga.contracts.logging import Logger, LoggerConfig, LoggerContext
from quadriga.errors import UserError

WAITING = 1000
"""Records that may wait for a slow network; one more makes the logger fail."""
PATIENCE_SECONDS = 60.0
"""How long the end of a run waits for a slow network, in seconds."""


def check_loggers(loggers: Sequence[LoggerConfig]) -> None:
    """Check that the packages of all loggers are installed, without starting a logger.

    Raises:
        UserError: A package is missing.
    """
    for position, config in enumerate(loggers):
        package = type(config).package
        if package is not None and find_spec(package) is None:
            raise UserError(
                f"log.loggers.{position}: {package} is not installed; "
                f"pip install 'quadriga[{type(config).extra}]'"
            )


def check_kinds(loggers: Sequence[LoggerConfig]) -> None:
    """Check that no kind is listed twice: both loggers would write the same files.

    Raises:
        UserError: A kind is listed twice.
    """
    kinds = [config.kind() for config in loggers]
    for position, kind in enumerate(kinds):
        if kind in kinds[:position]:
            raise UserError(f"log.loggers.{position}: {kind} is listed twice; keep one of the two")


@final
class LoggerSet:
    """Passes each record to every logger.

    A logger that fails is dropped with a warning and the run continues. ``metrics.jsonl`` holds
    every record in any case, so a failed logger loses nothing.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Start without loggers; `warn` is called once for each logger that fails."""
        self._warn = warn
        self._loggers: dict[str, Logger] = {}

    def open(
        self, configs: Sequence[LoggerConfig], context: LoggerContext, say: Callable[[str], None]
    ) -> None:
        """Open the loggers; call on rank 0 only.

        Args:
            configs: ``log.loggers``.
            context: The run.
            say: Called with a line that says where a logger's metrics can be found.

        Raises:
            UserError: A logger cannot start; those opened before it are closed.
        """
        check_loggers(configs)
        for position, config in enumerate(configs):
            name = config.kind()
            try:
                logger = config.open(context)
            except Exception as error:  # a third-party package may raise anything
                self.close()
                raise UserError(
                    f"log.loggers.{position}: {name} cannot start: {_one_line(error)}; mend that, "
                    "or leave it out of log.loggers"
                ) from error
            if logger.place:
                say(f"{name}: {logger.place}")
            self._loggers[f"{name} (log.loggers.{position})"] = (
                _OnThread(logger) if logger.remote else logger
            )

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Pass a record to every logger."""
        self._each(lambda logger: logger.log(record, step))

    def picture(self, name: str, path: Path, step: int) -> None:
        """Pass a picture to every logger."""
        self._each(lambda logger: logger.picture(name, path, step))

    def close(self) -> None:
        """Close every logger."""
        self._each(lambda logger: logger.close())
        self._loggers.clear()

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # a third-party package may raise anything
                del self._loggers[name]
                if not isinstance(logger, _OnThread):  # closing it could wait for a dead network
                    with contextlib.suppress(Exception):
                        logger.close()
                self._warn(
                    f"{name} failed and is left out from here on: {_one_line(error)}; "
                    "metrics.jsonl has everything"
                )


def _one_line(error: Exception) -> str:
    lines = str(error).split("\n")
    return " ".join(lines[0].split()) or type(error).__name__


@final
class _OnThread(Logger):
    """Calls a logger on a thread, so that training does not wait for a network."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._failure: Exception | None = None
        self._waiting: queue.Queue[tuple[Mapping[str, float], int] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="logger", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                self._logger.log(*item)
            self._logger.close()
        except Exception as error:  # raised in the training thread by its next call
            self._failure = error

    def log(self, record: Mapping[str, float], step: int) -> None:
        self._raise()
        try:
            self._waiting.put_nowait((record, step))
        except queue.Full:
            raise TimeoutError(f"{WAITING} records wait for it") from None

    def close(self) -> None:
        """Write the records that still wait, and close the logger.

        Raises:
            TimeoutError: The logger did not finish within `PATIENCE_SECONDS`.
        """
        self._raise()
        try:
            self._waiting.put(None, timeout=PATIENCE_SECONDS)
        except queue.Full:
            raise TimeoutError(f"{WAITING} records wait for it") from None
        self._thread.join(PATIENCE_SECONDS)
        self._raise()
        if self._thread.is_alive():
            raise TimeoutError(f"it did not end within {PATIENCE_SECONDS:g} s")

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure
