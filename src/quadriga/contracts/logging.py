"""What a logger is: a place beside metrics.jsonl that a run's metrics go to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from quadriga.config.base import Choice


@dataclass(frozen=True)
class LoggerContext:
    """What a logger is opened with."""

    folder: Path
    """The run directory, which exists."""
    name: str
    """Name of the run."""
    config: Mapping[str, Any]
    """The resolved config as plain values."""
    start: int
    """Steps that are already made: what is logged after them is logged again."""


class Logger(ABC):
    """Takes the records of the logged steps, on rank 0."""

    place: str = ""
    """Where the user finds what was logged, when that is not a file of the run directory."""
    remote: ClassVar[bool] = False
    """Whether a call may wait for a network: it is then made on a thread of its own."""

    @abstractmethod
    def log(self, record: Mapping[str, float], step: int) -> None:
        """Take the metrics of a step.

        Args:
            record: Name to number, all finite; other steps may have other names.
            step: Finished optimizer steps.
        """

    @abstractmethod
    def close(self) -> None:
        """Write what is still held back; nothing is logged afterwards."""


class LoggerConfig(Choice, ABC):
    """A logger. Its kinds are the files of `quadriga.loggers`."""

    room: ClassVar[str] = "quadriga.loggers"
    package: ClassVar[str | None] = None
    """The module it needs beside those that every installation has."""
    extra: ClassVar[str | None] = None
    """The extra that brings the package: ``pip install 'quadriga[EXTRA]'``."""

    @abstractmethod
    def open(self, context: LoggerContext) -> Logger:
        """Start, or go on with what an earlier part of the run logged.

        Raises:
            Exception: It cannot start, for whatever reason.
        """
