"""One rank of the data-parallel equality tests: train a few steps, save what came out."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from quadriga.data.loader import Loader
from quadriga.distributed.environment import process_group
from quadriga.engine.arithmetic import make_plan
from quadriga.engine.build import build_objective
from quadriga.engine.data_parallel import DataParallelExecutor
from quadriga.engine.run_config import RunConfig
from quadriga.recipes.mae import mae_digits
from tiny import TINY


def tiny_config(words: list[str]) -> RunConfig:
    """Return the tiny run with overrides."""
    pairs = [word.split("=", 1) for word in (*TINY, "train.steps=5", *words)]
    return mae_digits().override(dict(pairs))


def train(path: Path, words: list[str]) -> None:
    """Make the run's steps on this rank; rank 0 saves parameters, losses and norms."""
    config = tiny_config(words)
    with process_group("cpu") as env:
        dataset = config.data.build("train")
        plan = make_plan(config, len(dataset), env.world_size)
        objective = build_objective(config, env.device, config.seed)
        executor = DataParallelExecutor(
            objective, config.optim, config.schedule, plan, env, config.seed
        )
        loader = Loader(
            dataset,
            config.views.build("train"),
            seed=config.seed,
            batch_size=plan.batch_size,
            accumulate=plan.accumulate,
            env=env,
            workers=0,
            prefetch=2,
            max_unreadable_fraction=0.0,
        )
        steps = range(plan.total_steps)
        with loader:
            outputs = list(executor.run(loader.batches(steps), steps))
        if env.is_main:
            result = {name: tensor.clone() for name, tensor in executor.state_dict().items()}
            result["losses"] = torch.stack([o.metrics["loss"] for o in outputs])
            result["grad_norms"] = torch.stack([o.grad_norm for o in outputs])
            torch.save(result, path)
        del executor, objective


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2:])
