"""One rank of the data-parallel equality tests: train a few steps, save what came out.

    python parallel_worker.py FILE [key=value ...] [-- FILE [key=value ...]] ...

Several runs share one start of the processes.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from torch.nn import functional

from quadriga.distributed.collectives import whole
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import EXACT, build_loader, build_on_meta
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step.data_parallel import DataParallelExecutor
from quadriga.recipes.find import find_recipe
from quadriga.recipes.mae import mae_digits
from tiny import TINY


def tiny_config(words: list[str]) -> RunConfig:
    """Return the tiny run with overrides; ``recipe=NAME`` takes another recipe as it is."""
    pairs = dict(word.split("=", 1) for word in words)
    name = pairs.pop("recipe", None)
    if name is not None:
        return find_recipe(name)().override(  # type: ignore[return-value]
            {"train.precision": "float32", **pairs}
        )
    return mae_digits().override(
        {**dict(word.split("=", 1) for word in (*TINY, "train.steps=5")), **pairs}
    )


def train(path: Path, words: list[str]) -> None:
    """Make one run's steps in a process group of its own."""
    with process_group("cpu") as env:
        train_in(env, path, words)


def train_in(env: DistEnv, path: Path, words: list[str]) -> None:
    """Make the run's steps on this rank; rank 0 saves the whole state, losses and norms."""
    config = tiny_config(words)
    dataset = config.data.build("train")
    plan = make_plan(config, len(dataset), env.world_size)
    objective = build_on_meta(config)
    executor = DataParallelExecutor(objective, config, plan, env)
    loader = build_loader(config, dataset, plan, env, EXACT)
    steps = range(plan.total_steps)
    with loader:
        outputs = list(executor.run(loader.batches(steps), steps))
    result = {name: whole(tensor).clone() for name, tensor in executor.state_dict().items()}
    with executor.frozen() as frozen:
        for name, tensor in frozen.state_dict().items():
            assert torch.equal(whole(tensor), result[f"objective.{name}"]), name
    result["losses"] = torch.stack([o.metrics["loss"] for o in outputs])
    result["grad_norms"] = torch.stack([o.grad_norm for o in outputs])
    if env.is_main:
        torch.save(result, path)
    del executor, objective, frozen


def main(words: list[str]) -> None:
    """Make every run on the command line."""
    with process_group("cpu") as env:
        for is_divider, group in itertools.groupby(words, lambda word: word == "--"):
            if not is_divider:
                path, *overrides = group
                if "smooth" in overrides:
                    # One rounding over the kink of a ReLU moves a gradient by far more.
                    functional.relu = functional.gelu
                    overrides.remove("smooth")
                train_in(env, Path(path), overrides)


if __name__ == "__main__":
    main(sys.argv[1:])
