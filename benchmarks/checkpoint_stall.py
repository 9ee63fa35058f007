"""How long training stands still for a checkpoint: saved in the background, and saved at once.

    python benchmarks/checkpoint_stall.py [--million 86] [--repeats 5] [--threads 1] [--device cpu]

The state is that of a transformer of so many million parameters with AdamW: the weights and two
moments in float32, 12 bytes each (ViT-Base: 86 million, 1.03 GB). Three sides, interleaved, each
starting with another one every time:

* *copy*: the same bytes, copied to host memory that has been used before: the floor.
* *asynchronous*: what `CheckpointStore.save` makes training wait when the save before it is over.
* *synchronous*: the same store with ``checkpoint.asynchronous=false``: written, flushed and hashed.

*written after* is when the background save was on the disk: saves that follow each other faster
wait for each other. The folder (``--folder``) decides what the disk is.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from quadriga.contracts import Batch, Executor, Objective, StepOutput
from quadriga.distributed.environment import SINGLE, pick_device
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.run_config import CheckpointConfig

WIDTH, BLOCK = 768, 7_087_872
"""Width of ViT-Base, and the parameters of one of its blocks."""
SHAPES = {
    "norm": (WIDTH,),
    "qkv": (3 * WIDTH, WIDTH),
    "projection": (WIDTH, WIDTH),
    "hidden": (4 * WIDTH, WIDTH),
    "output": (WIDTH, 4 * WIDTH),
}


@final
class State(Executor):
    """Weights and moments of some blocks."""

    def __init__(self, blocks: int, device: torch.device) -> None:
        """Make the tensors."""
        self.tensors = {
            f"{part}.{block}.{name}": torch.full(shape, 0.5, device=device)
            for part in ("objective", "optimizer.first", "optimizer.second")
            for block in range(blocks)
            for name, shape in SHAPES.items()
        }

    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
        """Make no steps."""
        yield from ()

    def frozen(self, weights: str = "raw") -> AbstractContextManager[Objective]:
        """Refuse: there is nothing to evaluate here."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors."""
        return dict(self.tensors)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing: the tensors are read in place."""


@final
class Copy:
    """The floor: one copy into memory that is there."""

    def __init__(self, state: State, device: torch.device) -> None:
        """Make the memory."""
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for tensor in state.tensors.values():
            host = torch.empty(tensor.shape, pin_memory=device.type == "cuda")
            self._pairs.append((host.zero_(), tensor))
        self._device = device

    def __call__(self) -> float:
        """Copy and return the seconds."""
        began = time.perf_counter()
        for host, tensor in self._pairs:
            host.copy_(tensor, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - began


@final
class Save:
    """Saves of one store, one after another, each when the one before is over."""

    def __init__(self, store: CheckpointStore, state: State) -> None:
        """Save `state` to `store`."""
        self._store, self._state, self._step = store, state, 0
        self.written: list[float] = []
        """Seconds until each save was on the disk."""

    def __call__(self) -> float:
        """Save and return the seconds that training would have waited."""
        self._step += 1
        self._store.take_stall()
        began = time.perf_counter()
        self._store.save(self._step, self._state)
        stalled = self._store.take_stall()
        self._store.wait()
        self.written.append(time.perf_counter() - began)
        return stalled


def measure(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each repeat of each side, after one that does not count."""
    names = list(sides)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = sides[name]()
            if repeat:
                taken[name].append(seconds)
    return taken


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--million", type=float, default=86.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", default=None, help="where to write; a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = pick_device(options.device, 0)
    state = State(max(1, round(options.million * 1e6 / BLOCK)), device)
    size = sum(tensor.nbytes for tensor in state.tensors.values())
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        saves = {}
        for name, asynchronous in (("asynchronous", True), ("synchronous", False)):
            config = CheckpointConfig(keep=1, asynchronous=asynchronous)
            store = stack.enter_context(CheckpointStore(work / name, SINGLE, config, ""))
            saves[name] = Save(store, state)
        taken = measure({"copy": Copy(state, device), **saves}, options.repeats)
    print(f"{size / 1e9:.2f} GB, {options.repeats} repeats, {options.threads} thread(s), {device}")
    print(f"{'':<14}{'seconds':>9}{'quartiles':>16}{'of synchronous':>16}{'written after':>15}")
    whole = statistics.median(taken["synchronous"])
    for name, seconds in taken.items():
        low, _, high = statistics.quantiles(seconds, n=4)
        after = f"{statistics.median(saves[name].written[1:]):.3f}" if name in saves else ""
        print(
            f"{name:<14}{statistics.median(seconds):>9.3f}{f'{low:.3f}-{high:.3f}':>16}"
            f"{statistics.median(seconds) / whole:>15.1%} {after:>15}"
        )


if __name__ == "__main__":
    main()
