"""The rows of one file of GLUE: tab separated, without quoting, with random access."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quadriga.data.text.glue.tasks import GlueTask, Table, columns_of
from quadriga.errors import UserError

_MOST_SKIPPED = 0.05
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One row."""

    texts: tuple[str, ...]
    """One or two texts."""
    label: float
    """The class, or the target of a regression; NaN in a file without labels."""
    line: int
    """Number of the line in the file, from 1."""
    index: str
    """The row's number in a test set, as it is in the file; else its position."""


@dataclass(frozen=True)
class Skipped:
    """Numbers of lines that hold no sample, by reason."""

    blank: int = 0
    short: int = 0
    """Rows with too few columns: QQP has some."""
    unlabelled: int = 0
    """Rows whose label is not one of the task's."""

    @property
    def rows(self) -> int:
        """Number of lines that are not blank and hold no sample."""
        return self.short + self.unlabelled


class GlueRows:
    """The samples of one file; memory holds the file's bytes once, and decodes rows on reading."""

    def __init__(self, path: Path, task: GlueTask, labelled: bool) -> None:
        """Read a file and find its rows.

        Args:
            path: The file.
            task: The file's task.
            labelled: Whether the file has labels. In a file without labels no row is skipped,
                since each needs a prediction; missing columns are read as empty texts.

        Raises:
            UserError: The file cannot be read, is not text, or does not have the task's layout.
        """
        self.path, self._task = path, task
        self._data = _read(path)
        starts, ends = _lines(self._data)
        table = task.train if labelled else task.test
        first = next((i for i in range(len(starts)) if starts[i] < ends[i]), None)
        if first is None:
            raise UserError(f"{path} holds no rows; get {task.folder} anew")
        cells = self._data[starts[first] : ends[first]].decode(errors="replace").split("\t")
        self._table, has_header = columns_of(table, cells)
        self._numbered = has_header and cells[0].strip().lower() in ("index", "id")
        chosen, labels, self.skipped = self._scan(starts, ends, first + has_header)
        self._starts, self._ends, self._line = starts[chosen], ends[chosen], chosen + 1
        self.labels: npt.NDArray[np.float64] = labels
        """float64 (rows,): the class, or the target of a regression."""
        self._check(labelled)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> Row:
        """Return row `index`."""
        text = self._data[self._starts[index] : self._ends[index]].decode("utf-8")
        cells = text.split("\t")
        texts = tuple(cells[i] if i < len(cells) else "" for i in self._table.text)
        number = cells[0] if self._numbered else str(index)
        return Row(texts, float(self.labels[index]), int(self._line[index]), number)

    def _scan(
        self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], first: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], Skipped]:
        """Return int64 lines that hold samples, their float64 labels, and the skipped lines."""
        least = _columns_needed(self._table)
        chosen: list[int] = []
        labels: list[float] = []
        blank = short = unlabelled = 0
        for line in range(first, len(starts)):
            cells = self._data[starts[line] : ends[line]].split(b"\t")
            if len(cells) == 1 and not cells[0].strip():
                blank += 1
                continue
            label = math.nan
            if self._table.label is not None:
                if len(cells) < least:
                    short += 1
                    continue
                label = self._label(cells[self._table.label].decode(errors="replace").strip())
                if math.isnan(label):
                    unlabelled += 1
                    continue
            chosen.append(line)
            labels.append(label)
        return (
            np.array(chosen, np.int64),
            np.array(labels, np.float64),
            Skipped(blank, short, unlabelled),
        )

    def _label(self, text: str) -> float:
        """Return a label as a number; NaN if it is not one of the task's."""
        if not self._task.regression:
            labels = self._task.labels
            return float(labels.index(text)) if text in labels else math.nan
        try:
            number = float(text)
        except ValueError:
            return math.nan
        return number if math.isfinite(number) else math.nan

    def _check(self, labelled: bool) -> None:
        """Check that the file belongs to the task.

        Raises:
            UserError: More than 5 % of its rows, or all, do not have the task's layout.
        """
        found, task, skipped = len(self), self._task, self.skipped
        if found and skipped.rows <= _MOST_SKIPPED * (found + skipped.rows):
            return
        where = ", ".join(str(column + 1) for column in self._table.text)
        what = f"the text in column {where}"
        if labelled and self._table.label is not None:
            place = (
                "the last column" if self._table.label < 0 else f"column {self._table.label + 1}"
            )
            labels = " or ".join(task.labels) or "a number"
            what += f" and {labels} in {place}"
        raise UserError(
            f"{self.path} must have {what}, tab separated, as {task.folder} has it, but of "
            f"{found + skipped.rows} rows {skipped.short} are too short and {skipped.unlabelled} "
            "have another label; get the official file, or set data.task"
        )


def _columns_needed(table: Table) -> int:
    label = table.label or 0
    return max(*table.text, label) + 1 + (label < 0)


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes().removeprefix(_BOM)
        data.decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} must be UTF-8, but is not: {error.reason} at byte {error.start}"
        ) from error
    return data


def _lines(data: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return int64 starts and ends of the lines, without their ends of line.

    Only line feeds end a line: the texts contain other characters at which Python splits lines.
    """
    feeds = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")).astype(np.int64)
    if not data.endswith(b"\n"):
        feeds = np.append(feeds, len(data))
    starts = np.concatenate([np.zeros(1, np.int64), feeds[:-1] + 1])
    padded = np.frombuffer(b"\n" + data, np.uint8)  # padded[i] is the byte before position i
    returns = (feeds > starts) & (padded[feeds] == ord("\r"))
    return starts, feeds - returns
