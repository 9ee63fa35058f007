"""Interface of loggers, which receive a run's metrics in addition to metrics.jsonl."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from quadriga.config.base import Choice


@dataclass(frozen=True)
class LoggerContext:
    """The arguments that a logger is opened with."""

    folder: Path
    """The run directory, which exists."""
    name: str
    """Name of the run."""
    config: Mapping[str, Any]
    """The resolved config as plain values."""
    start: int
    """Finished optimizer steps; records of later steps replace those of an earlier attempt."""


class Logger(ABC):
    """Receives the records of the logged steps, on rank 0."""

    place: str = ""
    """Where the user finds the log, if it is not a file of the run directory."""
    remote: ClassVar[bool] = False
    """Whether a call may wait for a network; calls then run on a separate thread."""

    @abstractmethod
    def log(self, record: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step.

        Args:
            record: Name -> finite number; other steps may have other names.
            step: Finished optimizer steps.
        """

    def picture(self, name: str, path: Path, step: int) -> None:  # noqa: B027
        """Take a picture of an evaluation; a logger without a place for pictures leaves it out.

        Args:
            name: ``PROTOCOL.PICTURE``.
            path: An image file of the run directory.
            step: Finished optimizer steps.
        """

    @abstractmethod
    def close(self) -> None:
        """Write buffered records; nothing is logged afterwards."""


class LoggerConfig(Choice, ABC):
    """A logger. Its kinds are the files of `quadriga.loggers`."""

    room: ClassVar[str] = "quadriga.loggers"
    package: ClassVar[str | None] = None
    """The module that the logger needs beyond quadriga's own dependencies."""
    extra: ClassVar[str | None] = None
    """The extra that installs the package: ``pip install 'quadriga[EXTRA]'``."""

    @abstractmethod
    def open(self, context: LoggerContext) -> Logger:
        """Start a log, or continue the log of an earlier part of the run.

        Raises:
            Exception: The logger cannot start, for whatever reason.
        """
