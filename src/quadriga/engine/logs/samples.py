"""Log of the samples that were read: ``WORK_DIR/samples/rank_00000.jsonl``, if ``log.samples``.

One line per micro-batch: the step (the number of finished steps, as in metrics.jsonl), the
position of its first sample in the step's batch, and the samples' indices and keys. Positions do
not depend on the layout, so the union over the ranks' files can be compared between layouts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, final

from quadriga.contracts import Batch
from quadriga.data.reading.stream import Part
from quadriga.files import parse_json, write_text


class SampleRead(NamedTuple):
    """One sample that was read."""

    step: int
    """The step that used it, from 1."""
    position: int
    """Its position in the step's batch over all ranks."""
    sample: int
    """Its index in the data set; that of the replacement if it could not be read."""
    key: int
    """Its random key."""
    task: str = ""
    """The task whose data set the index refers to; empty outside a mixture."""


@final
class SampleLog:
    """Writes the micro-batches of one rank to its file."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Continue the rank's file in `folder`.

        Raises:
            OSError: It cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"rank_{rank:05d}.jsonl").open("a", encoding="utf-8")

    def add(self, step: int, part: Part, batch: Batch) -> None:
        """Write a micro-batch.

        Args:
            step: The step, from 0.
            part: The requested part of the step's batch.
            batch: On the CPU; ``index`` and ``key`` are written.
        """
        line = {
            "step": step + 1,
            "first": part.places.start,
            "index": batch["index"].tolist(),
            "key": batch["key"].tolist(),
            **({"task": part.task} if part.task else {}),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def rewind_samples(folder: Path, step: int) -> None:
    """Drop the samples of steps after `step` and incomplete lines, in the files of all ranks.

    Raises:
        OSError: A file cannot be written.
    """
    for path in sorted(folder.glob("rank_*.jsonl")):
        kept = [line for line, record in _lines(path) if record["step"] <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))


def read_samples(folder: Path) -> list[SampleRead]:
    """Return the samples that all ranks read, sorted by step and position."""
    found = []
    for path in folder.glob("rank_*.jsonl"):
        for _, record in _lines(path):
            pairs = zip(record["index"], record["key"], strict=True)
            for position, (index, key) in enumerate(pairs, record["first"]):
                task = record.get("task", "")
                found.append(SampleRead(record["step"], position, index, key, task))
    return sorted(found)


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append((line, parse_json(line)))
        except ValueError:
            continue
    return found
