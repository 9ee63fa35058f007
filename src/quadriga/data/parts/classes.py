"""Labels by class name: the data of one list of classes under the numbers of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from quadriga.contracts import Dataset
from quadriga.errors import UserError

_SHOWN = 12


@final
class Renumbered(Dataset):
    """A data set whose labels are positions in another list of classes."""

    def __init__(self, dataset: Dataset, classes: Sequence[str]) -> None:
        """Take the samples of `dataset`, each of whose records is of one of `classes`."""
        self.whole, self.classes = dataset, tuple(classes)
        self.identity = dataset.identity
        position = {name: number for number, name in enumerate(classes)}
        numbers = [position.get(name, -1) for name in dataset.classes]
        self._numbers = np.array(numbers, dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.whole)

    def read(self, index: int) -> Any:
        """Return record `index` with its new label; see `Dataset.read`."""
        record = self.whole.read(index)
        if record.label is None:
            return record
        return dataclasses.replace(record, label=int(self._numbers[record.label]))

    def name(self, index: int) -> str:
        """Return the name that the data set gives the record."""
        return self.whole.name(index)

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Return the new labels; see `Dataset.labels`."""
        labels = self.whole.labels()
        return None if labels is None else np.where(labels < 0, -1, self._numbers[labels])


def match_classes(
    dataset: Dataset,
    classes: Sequence[str],
    whose: str,
    what: str,
    say: Callable[[str], None] = lambda text: None,
) -> Dataset:
    """Return a data set whose labels are positions in `classes`, matched by name.

    Args:
        dataset: The data to evaluate on; it may lack some of the classes.
        classes: The class names to match, in the order of their numbers.
        whose: What they are the classes of, for sentences.
        what: What the data set is, for sentences.
        say: Told which classes there are, where some are missing.

    Raises:
        UserError: It has samples of other classes.
    """
    if not dataset.classes or not classes or tuple(classes) == dataset.classes:
        return dataset
    labels = dataset.labels()
    used = set(range(len(dataset.classes))) if labels is None else set(np.unique(labels).tolist())
    names = [name for number, name in enumerate(dataset.classes) if number in used]
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UserError(
            f"the classes of {what} must be among the {len(classes)} of {whose} "
            f"({_listed(classes)}), but are {len(names)} ({_listed(names)}); rename or leave out "
            f"{_listed(unknown)}"
        )
    if len(names) < len(classes):
        say(
            f"{what} has {len(names)} of the {len(classes)} classes of {whose}, matched by name: "
            f"{_listed(names)}"
        )
    return Renumbered(dataset, classes)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
