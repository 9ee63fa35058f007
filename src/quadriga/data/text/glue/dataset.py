"""The tasks of GLUE from their official files (`quadriga.data.text.glue.tasks`)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt
from pydantic import field_validator

from quadriga.config.base import Location
from quadriga.contracts import Dataset, DatasetConfig, Split
from quadriga.data.images.files import check_folder
from quadriga.data.parts.subsets import Subset
from quadriga.data.text.glue.rows import GlueRows, Row, Skipped
from quadriga.data.text.glue.tasks import TASKS, GlueTask, task_called, task_folder
from quadriga.data.text.text_pairs import LabelledText
from quadriga.data.text.wordpiece import Vocabulary, read_vocabulary
from quadriga.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@final
class GlueConfig(DatasetConfig):
    """One GLUE task: training set and development set, as WordPiece tokens.

    ``root`` holds a folder per task (``CoLA``, ``SST-2``, ...; upper and lower case and hyphens do
    not matter), or is that folder itself.
    """

    root: Location[Path]
    """The folder that holds the tasks."""
    task: str
    """cola, sst2, mrpc, stsb, qqp, mnli, mnli-mm, qnli, rte or wnli."""
    vocabulary: Location[Path | None] = None
    """The ``vocab.txt`` of the model; none for the one in `root` or in the task's folder."""
    lowercase: bool = True
    """Whether text is lower-cased and loses its accents, as for an uncased model."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        try:
            return task_called(task).name
        except UserError as error:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, but is {task!r}") from error

    def build(self, split: Split) -> GlueDataset:
        """Open the training set, or the (first) development set.

        Raises:
            UserError: A file is missing or is not one of the task, or the vocabulary cannot be
                read.
        """
        task = TASKS[self.task]
        check_folder(self.root, "data.root")
        folder = task_folder(self.root, task)
        if folder is None:
            raise UserError(
                f"data.root must hold a folder {task.folder} with {task.file('train')}, but "
                f"{self.root} does not"
            )
        source = _Source(folder, task, self._vocabulary(folder))
        return GlueDataset(source, "train" if split == "train" else "dev", task.parts[0])

    def _vocabulary(self, folder: Path) -> Vocabulary:
        if self.vocabulary is not None:
            return read_vocabulary(self.vocabulary, self.lowercase)
        for place in (self.root, folder):
            if (place / "vocab.txt").is_file():
                return read_vocabulary(place / "vocab.txt", self.lowercase)
        raise UserError(
            "data.vocabulary must name the vocab.txt that the model was pre-trained with, but is "
            f"not set, and {self.root} holds none"
        )


class _Source:
    """The folder, task and vocabulary that the sets of one task share."""

    def __init__(self, folder: Path, task: GlueTask, vocabulary: Vocabulary) -> None:
        self.folder, self.task, self.vocabulary = folder, task, vocabulary
        self.special = vocabulary.special

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return self.vocabulary.tokenizer()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def path(self, split: str, part: str) -> Path:
        return self.folder / self.task.file(split, part)


@final
class GlueDataset(Dataset):
    """One set of a task; a text is tokenised when it is read."""

    def __init__(self, source: _Source, split: str, part: str) -> None:
        """Read a set's file.

        Args:
            source: The task's folder and vocabulary.
            split: train, dev or test.
            part: Name of the development or test set, "" if there is only one.

        Raises:
            UserError: The file is missing or is not one of the task.
        """
        self._source, self.split, self.part = source, split, part
        self.task = source.task
        self.classes = source.task.labels
        self.vocabulary_size = len(source.vocabulary)
        self.identity = source.vocabulary.digest
        self.file = source.path(split, part)
        if not self.file.is_file():
            raise UserError(
                f"data.root must hold {self.file.name} of {source.task.folder}, but there is no "
                f"{self.file}"
            )
        self._rows = GlueRows(self.file, source.task, labelled=split != "test")

    @property
    def skipped(self) -> Skipped:
        """The numbers of lines of the file that hold no sample."""
        return self._rows.skipped

    def sibling(self, split: str, part: str) -> GlueDataset | None:
        """Return another set of the same task; None if its file is missing."""
        if not self._source.path(split, part).is_file():
            return None
        return GlueDataset(self._source, split, part)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        """Return row `index` as text."""
        return self._rows.read(index)

    def read(self, index: int) -> LabelledText:
        """Return row `index` as tokens; the label is an int class, or a float of a regression."""
        row = self._rows.read(index)
        tokens = [self._source.encode(text) for text in row.texts]
        label: int | float | None = None
        if self.split != "test":
            label = row.label if self.task.regression else int(row.label)
        return LabelledText(
            first=tokens[0],
            second=tokens[1] if len(tokens) > 1 else None,
            label=label,
            start=self._source.special.class_,
            end=self._source.special.separator,
        )

    def name(self, index: int) -> str:
        """Return the file and the line of row `index`."""
        return f"{self.file} line {self.row(index).line}"

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Return int64 (rows,) classes; None for a regression and for a test set."""
        is_class = self.split != "test" and not self.task.regression
        return self._rows.labels.astype(np.int64) if is_class else None

    def labels_of(self, dataset: Dataset) -> npt.NDArray[np.float64]:
        """Return float64 (samples,): the labels of this set or of the subset `dataset` of it."""
        labels = self._rows.labels
        return labels[dataset.indices] if isinstance(dataset, Subset) else labels
