"""The nine tasks of GLUE as tables: their files, columns, labels and metrics.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding" (ICLR 2019, arXiv:1804.07461). The files are those of the official download: tab
separated, no quoting, mostly with a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quadriga.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Table:
    """The columns of a file."""

    text: tuple[int, ...]
    """Columns of the one or two texts, from 0."""
    names: tuple[str, ...]
    """Names of the columns of the texts in a header, in lower case."""
    label: int | None = None
    """Column of the label, -1 for the last; None in a file without labels."""
    label_name: str = ""
    """Name of the column of the label in a header, in lower case."""


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One task."""

    name: str
    """Name of the task in commands and configs."""
    folder: str
    """Name of its folder in the official download."""
    train: Table
    """Layout of the files with labels: those of the training and development sets."""
    test: Table
    """Layout of ``test.tsv``, which has no labels."""
    metrics: tuple[str, ...]
    """The official metrics; the mean of several is the task's score."""
    train_size: int
    """Rows of the official training set."""
    labels: tuple[str, ...] = ("0", "1")
    """The labels in the files, in the order of the classes; none for a regression."""
    parts: tuple[str, ...] = ("",)
    """Names of the development sets, and of the test sets; "" if there is only one."""

    @property
    def regression(self) -> bool:
        """Whether a label is a number instead of a class."""
        return not self.labels

    @property
    def outputs(self) -> int:
        """Outputs of a model for this task: one per class, or one number."""
        return len(self.labels) or 1

    def file(self, split: str, part: str = "") -> str:
        """Return the name of the file of ``train``, ``dev`` or ``test``, and of a part."""
        return f"{split}_{part}.tsv" if part and split != "train" else f"{split}.tsv"

    def submission(self, part: str = "") -> str:
        """Return the name of a file of predictions that the benchmark's server expects."""
        letters = {"matched": "-m", "mismatched": "-mm"}
        return f"{self.folder}{letters.get(part, '')}.tsv"


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_TWO = Table(text=(1, 2), names=_PAIR, label=3, label_name="label")
_TWO_TEST = Table(text=(1, 2), names=_PAIR)
_ONE_TEST = Table(text=(1,), names=("sentence",))
_MNLI = Table(text=(8, 9), names=_PAIR, label=-1, label_name="gold_label")
_MNLI_LABELS = ("contradiction", "entailment", "neutral")
_STRINGS = ("#1 string", "#2 string")
_QUESTIONS = ("question1", "question2")

_ALL = (
    GlueTask(
        name="cola",
        folder="CoLA",
        train=Table(text=(3,), names=("sentence",), label=1, label_name="label"),
        test=_ONE_TEST,
        metrics=("mcc",),
        train_size=8551,
    ),
    GlueTask(
        name="sst2",
        folder="SST-2",
        train=Table(text=(0,), names=("sentence",), label=1, label_name="label"),
        test=_ONE_TEST,
        metrics=("accuracy",),
        train_size=67349,
    ),
    GlueTask(
        name="mrpc",
        folder="MRPC",
        train=Table(text=(3, 4), names=_STRINGS, label=0, label_name="quality"),
        test=Table(text=(3, 4), names=_STRINGS),
        metrics=("accuracy", "f1"),
        train_size=3668,
    ),
    GlueTask(
        name="stsb",
        folder="STS-B",
        train=Table(text=(7, 8), names=_PAIR, label=-1, label_name="score"),
        test=Table(text=(7, 8), names=_PAIR),
        metrics=("pearson", "spearman"),
        labels=(),
        train_size=5749,
    ),
    GlueTask(
        name="qqp",
        folder="QQP",
        train=Table(text=(3, 4), names=_QUESTIONS, label=5, label_name="is_duplicate"),
        test=Table(text=(1, 2), names=_QUESTIONS),
        metrics=("accuracy", "f1"),
        train_size=363846,
    ),
    GlueTask(
        name="mnli",
        folder="MNLI",
        train=_MNLI,
        test=Table(text=(8, 9), names=_PAIR),
        metrics=("accuracy",),
        labels=_MNLI_LABELS,
        parts=("matched", "mismatched"),
        train_size=392702,
    ),
    GlueTask(
        name="mnli-mm",
        folder="MNLI",
        train=_MNLI,
        test=Table(text=(8, 9), names=_PAIR),
        metrics=("accuracy",),
        labels=_MNLI_LABELS,
        parts=("mismatched",),
        train_size=392702,
    ),
    GlueTask(
        name="qnli",
        folder="QNLI",
        train=Table(text=(1, 2), names=("question", "sentence"), label=3, label_name="label"),
        test=Table(text=(1, 2), names=("question", "sentence")),
        metrics=("accuracy",),
        labels=_ENTAILMENT,
        train_size=104743,
    ),
    GlueTask(
        name="rte",
        folder="RTE",
        train=_TWO,
        test=_TWO_TEST,
        metrics=("accuracy",),
        labels=_ENTAILMENT,
        train_size=2490,
    ),
    GlueTask(
        name="wnli",
        folder="WNLI",
        train=_TWO,
        test=_TWO_TEST,
        metrics=("accuracy",),
        train_size=635,
    ),
)

TASKS: Mapping[str, GlueTask] = {task.name: task for task in _ALL}
"""Every task by its name. ``mnli-mm`` is MNLI evaluated on the mismatched sets alone."""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def task_called(name: str) -> GlueTask:
    """Return a task by its name, in any case, with or without hyphens: ``SST-2`` is ``sst2``.

    Raises:
        UserError: There is no such task.
    """
    for task in TASKS.values():
        if _plain(name) == _plain(task.name):
            return task
    raise UserError(f"unknown GLUE task {name!r}{did_you_mean(name.lower(), TASKS)}")


def task_folder(root: Path, task: GlueTask) -> Path | None:
    """Return a task's folder in `root`, or `root` itself if it has the task's files, or None."""
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        return None
    found = [path for path in folders if _plain(path.name) == _plain(task.folder)]
    if found:
        return found[0]
    return root if (root / task.file("train")).is_file() else None


def tasks_in(root: Path) -> list[GlueTask]:
    """Return the tasks that have a folder of their own below `root`, without ``mnli-mm``."""
    return [
        task
        for task in TASKS.values()
        if task.name != "mnli-mm" and task_folder(root, task) not in (None, root)
    ]


def columns_of(table: Table, first_row: Iterable[str]) -> tuple[Table, bool]:
    """Return the columns of a file, and whether its first row is a header.

    A header is recognised by the names of the columns. Without a header the columns are those of
    the official files: of CoLA only ``test.tsv`` has a header.

    Args:
        table: The official layout.
        first_row: The cells of the first row.
    """
    cells = [cell.strip().lower() for cell in first_row]
    wanted = [*table.names, *([table.label_name] if table.label is not None else [])]
    if all(name in cells for name in wanted):
        label = None if table.label is None else cells.index(table.label_name)
        text = tuple(cells.index(name) for name in table.names)
        return Table(text=text, names=table.names, label=label, label_name=table.label_name), True
    return table, table.label is None and cells[0] in ("index", "id")
