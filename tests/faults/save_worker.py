"""Save checkpoints for ever and be killed for it, again and again.

    python save_worker.py FOLDER KILLS

Forks a process that reads the newest whole checkpoint, checks it, and saves one after another
until it is killed at a keyed time; then the next one does. Prints how each process ended, and in
which place: "saving" when a partial checkpoint was there.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from quadriga.contracts import Batch, Executor, Objective, StepOutput
from quadriga.distributed.environment import SINGLE
from quadriga.engine.checkpoint.store import CheckpointStore, newest_valid
from quadriga.engine.run_config import CheckpointConfig
from quadriga.randomness import Stream, fold


class Tensors(Executor):
    """A state of a few megabytes that says which step it is of, in every number."""

    def __init__(self) -> None:
        """Start at step 0."""
        self.state = {f"objective.{i}": torch.zeros(1 << 18) for i in range(6)}

    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
        """Make no steps."""
        yield from ()

    def frozen(self, weights: str = "raw") -> AbstractContextManager[Objective]:
        """Refuse: there is nothing to evaluate here."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the tensors."""
        self.state = state


def newest(folder: Path, executor: Tensors) -> int:
    """Load the newest whole checkpoint; return its step, or -1 if it is not what it should be."""
    reported = folder / "reported"
    promised = int(reported.read_text()) if reported.exists() else 0
    found = newest_valid(folder / "checkpoints", print)
    if found is None:
        return 0 if promised == 0 else -1
    step = CheckpointStore(folder / "checkpoints", SINGLE, CheckpointConfig(keep=2), "").load(
        found, executor
    )
    whole = all((tensor == step).all() for tensor in executor.state.values())
    return step if whole and step >= promised else -1


def save_for_ever(folder: Path) -> int:
    """Save until killed; return only when what was there is wrong."""
    executor = Tensors()
    step = newest(folder, executor)
    if step < 0:
        return 5
    store = CheckpointStore(folder / "checkpoints", SINGLE, CheckpointConfig(keep=2), "")
    (folder / "ready").touch()
    while True:
        step += 1
        promised = step if step % 3 == 0 else step - 1
        for tensor in executor.state.values():
            tensor.fill_(step)
        store.save(step, executor)
        if promised == step:
            store.wait()
        # Promised from here on: a rename, so that the promise itself is whole. A save that nobody
        # has waited for promises the one before it.
        (folder / "promise").write_text(str(promised))
        (folder / "promise").rename(folder / "reported")


def main() -> None:
    """Fork, kill, and tell."""
    torch.set_num_threads(1)
    gc.freeze()
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    ends = []
    for kill in range(kills):
        (folder / "ready").unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            sys.exit(save_for_ever(folder))
        while not (folder / "ready").exists() and os.waitpid(child, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        time.sleep(Stream(fold("test kill", kill)).uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        saving = any((folder / "checkpoints").glob(".*"))
        ends.append((code, "saving" if saving else "between"))
    print(json.dumps({"ends": ends, "step": newest(folder, Tensors())}))


if __name__ == "__main__":
    main()
