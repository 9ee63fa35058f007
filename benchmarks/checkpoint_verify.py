"""What verifying a checkpoint costs, beside reading its bytes and hashing them in one thread.

    python benchmarks/checkpoint_verify.py [--gib 1] [--threads 0] [--repeats 5]

Saves a state of so many GiB and reads it again and again: the files are in the page cache, so the
disk is no part of what is measured. The sides are interleaved and start with another one each
time; the table has the medians, and the ratio to reading, which no verification can beat.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from quadriga.contracts import Batch, Executor, Objective, StepOutput
from quadriga.distributed.environment import SINGLE
from quadriga.engine.checkpoint.store import CheckpointStore, verify
from quadriga.engine.run_config import CheckpointConfig

PIECE = 4 << 20


class Zeros(Executor):
    """A state of 64 MiB tensors."""

    def __init__(self, count: int) -> None:
        """Make `count` tensors."""
        self._state = {f"objective.{i}": torch.zeros(16 << 20) for i in range(count)}

    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
        """Make no steps."""
        yield from ()

    def frozen(self, weights: str = "raw") -> AbstractContextManager[Objective]:
        """Refuse: there is nothing to evaluate here."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing: the tensors are read in place."""


def read(folder: Path, take: Callable[[memoryview], None]) -> None:
    """Hand every byte of the checkpoint to `take`, in one thread."""
    buffer = memoryview(bytearray(PIECE))
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as stream:
            while size := stream.readinto(buffer):
                take(buffer[:size])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=0, help="0: as a run does")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        config = CheckpointConfig(asynchronous=False)
        with CheckpointStore(Path(work), SINGLE, config, "") as store:
            path = store.save(1, Zeros(max(1, round(options.gib * 16))))
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        count = len(list(path.glob("*.safetensors")))
        sides: dict[str, Callable[[], object]] = {
            "read only": lambda: read(path, lambda piece: None),
            "sha256, one thread": lambda: read(path, hashlib.sha256().update),
            "verify": lambda: verify(path, options.threads or None),
        }
        taken = measure(sides, options.repeats)
    print(f"{size / 1e9:.2f} GB in {count} files, {options.repeats} repeats")
    print(f"{'':<20}{'seconds':>10}{'GB/s':>8}{'ratio':>8}{'quartiles':>16}")
    first = taken["read only"]
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        low, _, high = statistics.quantiles(
            [mine / floor for mine, floor in zip(seconds, first, strict=True)], n=4
        )
        ratio = median / statistics.median(first)
        print(
            f"{name:<20}{median:>10.3f}{size / 1e9 / median:>8.2f}{ratio:>8.2f}"
            f"{low:>9.2f}-{high:.2f}"
        )


def measure(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return what each repeat of each side took, after one that does not count."""
    names = list(sides)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            sides[name]()
            if repeat:
                taken[name].append(time.perf_counter() - began)
    return taken


if __name__ == "__main__":
    main()
