"""Which samples were really read: ``WORK_DIR/samples/rank_00000.jsonl``, when ``log.samples``.

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
from quadriga.files import write_text


class SampleRead(NamedTuple):
    """One sample that was read."""

    step: int
    """The number of finished steps after the one that it belongs to, from 1."""
    position: int
    """Its place in the step's batch over all ranks."""
    sample: int
    """Its index in the data set; a replacement's where it could not be read."""
    key: int
    task: str = ""
    """Whose data set the index is of; empty outside a mixture."""


@final
class SampleLog:
    """Writes down the micro-batches of one rank."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Continue the rank's file in `folder`.

        Raises:
            OSError: It cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"rank_{rank:05d}.jsonl").open("a", encoding="utf-8")

    def add(self, step: int, part: Part, batch: Batch) -> None:
        """Write down a micro-batch.

        Args:
            step: The step, from 0.
            part: What was asked for.
            batch: On the CPU; ``index`` and ``key`` are read.
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
    """Drop what was read for steps after `step`, of every rank there was; torn lines too.

    Raises:
        OSError: A file cannot be written.
    """
    for path in sorted(folder.glob("rank_*.jsonl")):
        kept = [line for line, record in _lines(path) if record["step"] <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))


def read_samples(folder: Path) -> list[SampleRead]:
    """Return what all ranks read, in the order of the stream."""
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
            found.append((line, json.loads(line)))
        except ValueError:
            continue
    return found
