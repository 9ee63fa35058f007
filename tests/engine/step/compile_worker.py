"""Train with compiled blocks and without: a process of its own, free of the checks of shapes.

    python compile_worker.py [key=value ...]

Prints one JSON object: losses of both sides, and how many programs were compiled.
"""

from __future__ import annotations

import json
import sys

import torch
from torch._dynamo.utils import counters

from parallel_worker import tiny_config
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import EXACT, build_loader, build_objective
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step.data_parallel import DataParallelExecutor


def losses(words: list[str]) -> list[float]:
    """Return the losses of three steps."""
    config = tiny_config(words)
    dataset = config.data.build("train")
    plan = make_plan(config, len(dataset), 1)
    objective = build_objective(config, SINGLE.device, config.seed)
    executor = DataParallelExecutor(objective, config, plan, SINGLE)
    loader = build_loader(config, dataset, plan, SINGLE, EXACT)
    outputs = executor.run(loader.batches(range(3)), range(3))
    found = [float(output.metrics["loss"]) for output in outputs]
    with executor.frozen() as frozen, torch.no_grad():
        # Evaluation compiles nothing.
        frozen.eval().features(torch.zeros(5, 3, 16, 16))  # type: ignore[operator]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    eager = losses(sys.argv[1:])
    told = {"eager": eager}
    for name, words in (("compiled", []), ("recomputed", ["train.recompute=full"])):
        counters.clear()
        told[name] = losses([*sys.argv[1:], "train.compile=true", *words])
        told[f"{name} graphs"] = [counters["stats"]["unique_graphs"]]
    print(json.dumps(told))
