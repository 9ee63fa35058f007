"""One rank that counts the collectives of a step, by kind, in every layout and accumulation.

    python collectives_counter.py FILE

Rank 0 writes {"LAYOUT/MICRO-BATCHES": {KIND: COUNT}}.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from torch.utils._python_dispatch import TorchDispatchMode

from parallel_worker import tiny_config
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import build_objective
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step.data_parallel import DataParallelExecutor

LAYOUTS = {
    "ddp": ["train.parallel=ddp"],
    "fsdp": ["train.parallel=fsdp"],
    "fsdp-keep": ["train.parallel=fsdp", "train.reshard_after_forward=false"],
}


class Counted(TorchDispatchMode):
    """Counts the operations of torch.distributed that pass through the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.counts[func.__name__.partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def counts(env: DistEnv, words: list[str]) -> dict[str, int]:
    """Return how often each collective runs in the second step."""
    config = tiny_config(["train.batch_size=16", *words])
    plan = make_plan(config, 1000, env.world_size)
    objective = build_objective(config, env.device, config.seed)
    executor = DataParallelExecutor(objective, config, plan, env)
    example = config.views.build("train").example(16 // (2 * plan.accumulate), env.device)
    example["image"].normal_()
    batches = iter([example] * (2 * plan.accumulate))
    list(executor.run(batches, range(1)))
    with Counted() as mode:
        list(executor.run(batches, range(1, 2)))
    return dict(mode.counts)


if __name__ == "__main__":
    with process_group("cpu") as env:
        found = {
            f"{name}/{accumulate}": counts(env, [*words, f"train.accumulate={accumulate}"])
            for name, words in LAYOUTS.items()
            for accumulate in (1, 4)
        }
        if env.is_main:
            Path(sys.argv[1]).write_text(json.dumps(found))
