"""Data sets whose labels are known without reading their records."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from quadriga.contracts import Dataset


class LabelledDataset(Dataset):
    """A data set that has all its labels at hand."""

    @abstractmethod
    def labels(self) -> npt.NDArray[np.int64]:
        """Return the class of each record, int64 (records,); -1 for a record without one."""
