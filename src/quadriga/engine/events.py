"""events.jsonl: what happened to a run beside its steps, one JSON object a line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import final


@final
class Events:
    """Appends events; a record of what happened, so that nothing is taken back on resumption."""

    def __init__(self, path: Path, active: bool = True) -> None:
        """Take the file's path; it is made with the first event.

        Args:
            path: events.jsonl of the run directory.
            active: Whether this rank writes: rank 0 does.
        """
        self._path, self._active = path, active

    def write(self, event: str, step: int, **plain: str | float | bool | list[int] | None) -> None:
        """Append an event.

        Args:
            event: What happened: ``loss spike``, ``skipped step``.
            step: Finished optimizer steps, as in metrics.jsonl.
            plain: Whatever else there is to know.

        Raises:
            OSError: It cannot be written.
        """
        if not self._active:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": event, "step": step, "time": now, **plain})
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")
