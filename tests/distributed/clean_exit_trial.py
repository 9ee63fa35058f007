"""Start many two-rank trainings and tell how each process ended.

    python clean_exit_trial.py TRIALS FOLDER

Imports once and forks a process per rank: each one joins a group, trains two steps, saves them and
leaves through the interpreter's own end, as a rank of a run does; in every second trial with an
error, while the checkpoint is being written. Prints the exit codes: 0, 3 when threads of the group
are left, 4 when the training failed or did not, or has left no checkpoint.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import torch

from parallel_worker import tiny_config
from quadriga.contracts import Dataset
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import EXACT, build_loader, build_objective, build_on_meta
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step.data_parallel import DataParallelExecutor
from quadriga.errors import UserError
from ranks import free_port

WORLD_SIZE = 2
CONFIG = tiny_config(["train.steps=2"])


def train(dataset: Dataset, env: DistEnv, folder: Path, fail: bool) -> None:
    """Make two steps on this rank, save, and fail while all is still in use if told to."""
    plan = make_plan(CONFIG, len(dataset), env.world_size)
    objective = build_objective(CONFIG, env.device, CONFIG.seed)
    executor = DataParallelExecutor(objective, CONFIG, plan, env)
    with build_loader(CONFIG, dataset, plan, env, EXACT) as loader:
        outputs = list(executor.run(loader.batches(range(2)), range(2)))
    with CheckpointStore(folder, env, CONFIG.checkpoint, "") as store:
        store.save(2, executor)
        # While the checkpoint is being written.
        if fail or not float(outputs[-1].metrics["loss"]) > 0:
            raise UserError(f"loss {float(outputs[-1].metrics['loss'])}")


def be_rank(rank: int, port: int, dataset: Dataset, folder: Path, fail: bool) -> int:
    """Train as one rank; return its exit code."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD_SIZE),
        LOCAL_WORLD_SIZE=str(WORLD_SIZE),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    failed = False
    try:
        with process_group("cpu") as env:
            train(dataset, env, folder, fail)
    except UserError:
        failed = True
        # Asked while the error and what it refers to are still there.
        left = threads_left()
    else:
        left = threads_left()
    if failed != fail or not (folder / "step_00000002").is_dir():
        return 4
    return 3 if left else 0


def threads_left() -> list[str]:
    """Return the threads of gloo, by the names that they give themselves."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def main() -> None:
    """Run the trials; a forked rank leaves through the end of the interpreter."""
    torch.set_num_threads(1)
    # What is imported on first use is imported here, and not by every rank for itself.
    dataset = CONFIG.data.build("train")
    CONFIG.optim.build(list(build_on_meta(CONFIG).named_parameters()))
    gc.freeze()  # so that the ranks' collections look at their own objects alone
    codes = []
    folder = Path(sys.argv[2])
    for trial in range(int(sys.argv[1])):
        port = free_port()
        children = []
        for rank in range(WORLD_SIZE):
            child = os.fork()
            if child == 0:
                sys.exit(be_rank(rank, port, dataset, folder / str(trial), trial % 2 == 1))
            children.append(child)
        for child in children:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
