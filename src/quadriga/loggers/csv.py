"""A table in the run directory, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, final

from quadriga.contracts.logging import Logger, LoggerConfig, LoggerContext
from quadriga.files import write_text

Row = dict[str, str]


@final
class CSVConfig(LoggerConfig):
    """``WORK_DIR/metrics.csv``: a row for each logged step, a column for each metric."""

    def open(self, context: LoggerContext) -> CSV:
        """Continue the table; rows of the steps that the resumed run repeats are removed."""
        return CSV(context)


@final
class CSV(Logger):
    """Appends rows; a new metric adds a column, for which the file is rewritten."""

    def __init__(self, context: LoggerContext) -> None:
        """Read the existing rows, drop those after the start and open the file to append."""
        self._path = context.folder / "metrics.csv"
        rows = [row for row in read_rows(self._path) if int(row["step"]) <= context.start]
        self._names = list(rows[0]) if rows else ["step"]
        self._last = int(rows[-1]["step"]) if rows else None
        self._file = self._rewritten(rows)

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Write a row, after new columns for new names; what is logged of the last step joins it.

        Args:
            record: As for `Logger.log`.
            step: Finished optimizer steps.
        """
        values = {name: value for name, value in record.items() if name != "step"}
        new = [name for name in values if name not in self._names]
        if new or step == self._last:
            self._names += new
            self._file.close()
            rows = read_rows(self._path)
            if step == self._last:
                rows[-1] |= {name: str(value) for name, value in values.items()}
            self._file = self._rewritten(rows)
        if step != self._last:
            self._writer().writerow({"step": step, **values})
            self._file.flush()
        self._last = step

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _writer(self) -> csv.DictWriter[str]:
        return csv.DictWriter(self._file, self._names, restval="", lineterminator="\n")

    def _rewritten(self, rows: list[Row]) -> IO[str]:
        """Replace the file by header and rows atomically, and open it to append."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self._names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._path, text.getvalue())
        return self._path.open("a", encoding="utf-8", newline="")


def read_rows(path: Path) -> list[Row]:
    """Return the complete rows of a table; an incomplete last line is left out.

    Args:
        path: The table; a file that does not exist has no rows.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    rows: list[Row] = list(csv.DictReader(io.StringIO(whole, newline="")))
    return [row for row in rows if (row.get("step") or "").isdecimal() and None not in row.values()]
