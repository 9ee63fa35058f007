"""One rank that trains a pipelined classifier a little and evaluates it, raw and averaged.

    python evaluation_worker.py FOLDER CASE.json ...

Each case is a file of overrides of `CASE`; it leaves ``FOLDER/CASE_rank_R.pt`` with the metrics,
the rank's state, and the most bytes that blocks found held beside what training holds.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import EXACT, build_loader, build_on_meta
from quadriga.engine.evaluate import evaluate, evaluation_data, make_context
from quadriga.engine.logs.console import Console
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import make_plan
from quadriga.recipes.deit import deit_digits

CASE = {
    "objective.classes": 10,
    "model.width": 32,
    "model.depth": 16,
    "model.heads": 2,
    "train.epochs": None,
    "train.steps": 2,
    "train.batch_size": 16,
    "train.accumulate": 4,
    "train.device": "cpu",
    "schedule.warmup_epochs": 0,
    "ema.decay": 0.5,
    "evaluation.train_samples": 20,
    "evaluation.test_samples": 13,
    "evaluation.protocols": [
        {"kind": "held_out", "batch_size": 4},
        {"kind": "knn", "neighbours": 3},
    ],
    "executor.kind": "pipeline",
}


def config_of(case: dict[str, Any]) -> RunConfig:
    """Return the config of a case."""
    return deit_digits().override({**CASE, **case})


def metrics_of(config: RunConfig, objective: Any, folder: Path, env: DistEnv, ranks: Any) -> Any:
    """Return what the run's protocols say of an objective, by protocol."""
    console = Console(active=False)
    folder = folder / f"report_{env.world_size}"
    folder.mkdir(exist_ok=True)
    data = evaluation_data(config)
    context = make_context(config, objective, data, folder, env, console, ranks)
    results = evaluate(config, config.evaluation.protocols, context, 0, console, config)
    return {result.protocol: dict(result.metrics) for result in results}


def live() -> int:
    """Return the bytes of all tensors that Python knows."""
    tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    plain = [t for t in tensors if type(t) in (torch.Tensor, nn.Parameter) and not t.is_meta]
    storages = [tensor.untyped_storage() for tensor in plain]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def run_case(name: str, case: dict[str, Any], env: DistEnv, folder: Path) -> None:
    """Run one case on this rank."""
    config = config_of(case)
    dataset = config.data.build("train")
    plan = make_plan(config, len(dataset), config.executor.share(0, env.world_size).of)
    executor = config.executor.build(build_on_meta(config), config, plan, env)
    steps = range(plan.total_steps)
    with build_loader(config, dataset, plan, env, EXACT) as loader:
        list(executor.run(loader.batches(steps), steps))
    before = {n: t.detach().clone() for n, t in executor.state_dict().items()}
    found: dict[str, Any] = {"bytes": []}
    for weights in ("raw", "ema"):
        gc.collect()
        held, training = [], live()

        def look(*_: Any, held: list[int] = held, training: int = training) -> None:
            held.append(live() - training)

        with executor.frozen(weights) as objective:
            for number in (0, -1):  # to look takes a while
                objective.encoder.blocks[number].register_forward_pre_hook(look)
            found[weights] = metrics_of(config, objective, folder, env, executor.ranks)
        del objective, look
        gc.collect()
        assert live() == training
        found["bytes"].append(max(held))
    after = executor.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    found["state"] = before
    torch.save(found, folder / f"{name}_rank_{env.rank}.pt")
    executor.close()


def main(folder: Path, files: list[Path]) -> None:
    """Join the group, run the cases, and leave."""
    with process_group("cpu", timeout_minutes=1) as env:
        for file in files:
            run_case(file.stem, json.loads(file.read_text()), env, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
