"""Log files as mmengine writes them: a text log, and ``vis_data/*.json`` for its plotting tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import final

from pydantic import Field

from quadriga.config.base import Location
from quadriga.contracts.logging import Logger, LoggerConfig, LoggerContext
from quadriga.files import write_text


@final
class MMEngineConfig(LoggerConfig):
    """``FOLDER/NAME.log`` and ``FOLDER/vis_data/{NAME,scalars}.json``; NAME is the folder's.

    The config goes to ``FOLDER/vis_data/config.py``, and beside FOLDER under the run's name.
    """

    folder: Location[Path | None] = None
    """Folder of this log; none: one in the run directory, named after the time of its start."""
    epoch_steps: int | None = Field(None, ge=1, le=2**30)
    """Optimizer steps of an epoch; none for lines that count iterations alone."""
    total_steps: int | None = Field(None, ge=1, le=2**30)
    """Optimizer steps of the run; none for lines without their number."""
    text: str = ""
    """The run's config as the text of a config file."""
    accumulate: int = Field(1, ge=1, le=2**30)
    """Iterations of an optimizer step; the files count iterations."""

    def open(self, context: LoggerContext) -> MMEngineLog:
        """Make the folder, and begin its files."""
        return MMEngineLog(self, context)


@final
class MMEngineLog(Logger):
    """Appends a line to each of the three files for every logged step."""

    def __init__(self, config: MMEngineConfig, context: LoggerContext) -> None:
        """Open the files; lines of an earlier attempt lie in a folder of their own.

        Args:
            config: What and where.
            context: The run.
        """
        self._config = config
        folder = config.folder or context.folder / datetime.now().strftime("%Y%m%d_%H%M%S")
        data = folder / "vis_data"
        data.mkdir(parents=True, exist_ok=True)
        if config.text:
            for path in (data / "config.py", folder.parent / f"{context.name}.py"):
                write_text(path, config.text)
        self._text = (folder / f"{folder.name}.log").open("a", encoding="utf-8")
        self._json = [
            (data / f"{stem}.json").open("a", encoding="utf-8") for stem in (folder.name, "scalars")
        ]

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Write the lines of a training step; other records have no learning rate, and no line.

        Args:
            record: As for `Logger.log`.
            step: Finished optimizer steps.
        """
        if "lr" not in record:
            return
        config = self._config
        seconds = record.get("step_seconds", 0.0) / config.accumulate
        row = {
            "lr": record["lr"],
            "data_time": seconds * record.get("data_wait_share", 0.0),
            **{name: value for name, value in record.items() if "loss" in name},
            **({"grad_norm": record["grad_norm"]} if "grad_norm" in record else {}),
            "time": seconds,
            **({"epoch": (step - 1) // config.epoch_steps + 1} if config.epoch_steps else {}),
            "iter": step * config.accumulate,
            "memory": round(1024 * record.get("memory_gib", 0.0)),
            "step": step * config.accumulate,
        }
        for stream in self._json:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
        now = datetime.now().strftime("%Y/%m/%d %H:%M:%S")
        self._text.write(f"{now} - mmengine - INFO - {self.line(row, record)}\n")
        self._text.flush()

    def line(self, row: Mapping[str, float], record: Mapping[str, float]) -> str:
        """Return the log line of a row of the JSON files."""
        config = self._config
        number = int(row["iter"])
        if config.epoch_steps:
            each = config.epoch_steps * config.accumulate
            where = f"Epoch(train) [{int(row['epoch'])}][{(number - 1) % each + 1}/{each}]"
        else:
            total = f"/{config.total_steps * config.accumulate}" if config.total_steps else ""
            where = f"Iter(train) [{number}{total}]"
        eta = timedelta(seconds=int(record.get("eta_seconds", 0)))
        parts = [
            f"lr: {row['lr']:.4e}",
            f"eta: {eta}",
            f"time: {row['time']:.4f}",
            f"data_time: {row['data_time']:.4f}",
            f"memory: {row['memory']}",
            *(f"{name}: {row[name]:.4f}" for name in row if "loss" in name or name == "grad_norm"),
        ]
        return "  ".join([where, *parts])

    def close(self) -> None:
        """Close the files."""
        for stream in (self._text, *self._json):
            stream.close()
