"""What a step over all samples costs beside one per micro-batch, and its exchange beside torch's.

    python benchmarks/step_costs.py [--steps 1] [--repeats 9] [--exchange mae_cifar10]

*Pooled*: one rank's whole steps, of one batch in 1, 2 and 4 micro-batches. The plain step is the
same objective with a loss of its own for each micro-batch, forward and backward one after the
other, through the same executor. Expected with several micro-batches is one more forward pass of
what is embedded (its FLOPs are counted apart), with one micro-batch nothing. DINO is not pooled:
its centre is a sum, and its rows are to be 1.

*Exchange*: forward, backward, sum of the gradients and optimizer step of two gloo ranks with one
thread each, of copies with the same weights on the same batches: the engine's `GradientSum`
against DistributedDataParallel (``gradient_as_bucket_view``) and against no exchange; and the
engine's exchange alone, with nothing to compute beside it.

The sides take turns in one process; *time* is the median of each repeat's ratio to the first side,
with quartiles.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
import torch.distributed as dist
from torch.distributed import run as torchrun
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from quadriga import randomness
from quadriga.contracts import Batch, LossOutput, MicroBatch, Objective, PooledObjective, Progress
from quadriga.distributed.environment import SINGLE, DistEnv
from quadriga.distributed.mesh import make_ranks
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import EXACT, build_loader, build_objective
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step.data_parallel import DataParallelExecutor
from quadriga.engine.step.gradients import GradientSum
from quadriga.recipes.find import find_recipe

VIT = {"model.width": "128", "model.depth": "6"}
POOLED: dict[str, dict[str, str]] = {
    "moco_v3_digits": VIT,
    "swav_digits": {"model.stem_width": "16"},
    "dino_digits": VIT,
}
"""Recipe -> overrides: models in which arithmetic outweighs calls."""

Step = Callable[[], None]


@final
class PerMicroBatch(Objective):
    """An objective whose loss of each micro-batch is that micro-batch's alone."""

    def __init__(self, inner: Objective) -> None:
        """Take over an objective, pooled or not."""
        super().__init__()
        self.inner, self.metric_names = inner, inner.metric_names
        self.term_names = inner.term_names

    def forward(self, batch: Batch) -> LossOutput:
        """Compute the loss as if the micro-batch were the step."""
        output: LossOutput = self.inner(batch)
        return output

    def initialise(self, seed: int) -> None:
        """Leave the values as they are."""

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return those of the objective."""
        return self.inner.sum_shapes()

    def before_step(self, progress: Progress) -> None:
        """Set what the objective sets."""
        self.inner.before_step(progress)
        self.frozen_parts = tuple(f"inner.{part}" for part in self.inner.frozen_parts)

    def after_step(self, progress: Progress, sums: Batch, rows: Batch) -> None:
        """Update what the objective updates."""
        self.inner.after_step(progress, sums, rows)


def executor_step(
    config: RunConfig, wrap: Callable[[Objective], Objective]
) -> tuple[Step, Objective, list[MicroBatch]]:
    """Return what makes one whole step of a run on this process, its objective and its batches."""
    dataset = config.data.build("train")
    plan = make_plan(config, len(dataset), 1)
    objective = build_objective(config, SINGLE.device, config.seed)
    executor = DataParallelExecutor(wrap(objective), config, plan, SINGLE)
    with build_loader(config, dataset, plan, SINGLE, EXACT) as loader:
        batches = list(loader.batches(range(1)))
    numbers = itertools.count()

    def step() -> None:
        first = next(numbers)
        list(executor.run(iter(batches), range(first, first + 1)))

    return step, objective, batches


def flops_of(call: Callable[[], Any]) -> int:
    """Return the operations of a call: matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def embedding_flops(objective: Objective, batches: list[MicroBatch]) -> int:
    """Return the operations of one forward pass of what is embedded; 0 where nothing is pooled."""
    if not isinstance(objective, PooledObjective):
        return 0
    with torch.no_grad(), randomness.micro_batch(0, 0, 0, 0):
        return sum(flops_of(functools.partial(objective.embed, batch)) for batch in batches)


def interleaved(sides: Mapping[str, Step], steps: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of a step of each side in each repeat, after one that does not count."""
    names = list(sides)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            if dist.is_initialized():
                dist.barrier()
            began = time.perf_counter()
            for _ in range(steps):
                sides[name]()
            if repeat:
                taken[name].append((time.perf_counter() - began) / steps)
    return taken


def against(taken: Mapping[str, list[float]], first: str, name: str) -> str:
    """Return the median of a side's ratios to the first one, with quartiles."""
    ratios = [one / base for one, base in zip(taken[name], taken[first], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:>8.3f}{low:>10.3f}-{high:.3f}"


def pooled(steps: int, repeats: int) -> None:
    """Print what pooling costs each method."""
    print(f"{'pooled against plain':<24}{'micro-batches':>14}{'expected':>10}{'FLOPs':>8}", end="")
    print(f"{'time':>8}{'quartiles':>15}")
    for recipe, overrides in POOLED.items():
        for accumulate in (1, 2, 4):
            config: RunConfig = find_recipe(recipe)()
            config = config.override({**overrides, "train.accumulate": str(accumulate)})
            step, objective, batches = executor_step(config, lambda inner: inner)
            plain, _, _ = executor_step(config, PerMicroBatch)
            whole, base = flops_of(step), flops_of(plain)
            more = embedding_flops(objective, batches) if accumulate > 1 else 0
            taken = interleaved({"plain": plain, "pooled": step}, steps, repeats)
            print(
                f"{recipe:<24}{accumulate:>14}{1 + more / base:>10.3f}{whole / base:>8.3f}"
                f"{against(taken, 'plain', 'pooled')}",
                flush=True,
            )


@final
class Exchange:
    """One copy of a model on two ranks, and the ways to sum its gradients."""

    def __init__(self, config: RunConfig, env: DistEnv, how: str) -> None:
        """Build it; every rank calls it. `how` is "none", "DDP" or "GradientSum"."""
        objective = build_objective(config, env.device, config.seed).train()
        dataset = config.data.build("train")
        plan = make_plan(config, len(dataset), env.world_size)
        with build_loader(config, dataset, plan, env, EXACT) as loader:
            self._batch = next(loader.batches(range(1)))
        named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        self._optimizer, self._ranks = config.optim.build(named), env.world_size
        self._model: torch.nn.Module = objective
        self.sum: GradientSum | None = None
        if how == "DDP":
            self._model = DistributedDataParallel(objective, gradient_as_bucket_view=True)
        elif how == "GradientSum":
            self.sum = GradientSum(named, make_ranks(env).samples)

    def gradients(self) -> None:
        """Compute the mean gradient over the ranks, or this rank's own."""
        if self.sum is not None:
            self.sum.begin()
        with randomness.micro_batch(0, 0, 0, 0):
            loss = self._model(self._batch).value
        if self.sum is None:
            loss.backward()
            return
        with self.sum.last_backward():
            loss.backward()
        torch._foreach_mul_(
            [p.grad for p in self.parameters if p.grad is not None], 1 / self._ranks
        )

    def step(self) -> None:
        """Make one optimizer step."""
        self._optimizer.zero_grad()
        self.gradients()
        self._optimizer.step()

    def exchange(self) -> None:
        """Sum gradients that are there already."""
        assert self.sum is not None
        with self.sum.last_backward(complete=("",)):
            pass


def exchange(recipe: str, env: DistEnv, steps: int, repeats: int) -> None:
    """Print what the engine's sum of gradients costs beside torch's."""
    config: RunConfig = find_recipe(recipe)()
    digits = {"kind": "digits", "image_px": config.views.as_dict()["image_px"]}
    config = config.override({"data": digits, "train.accumulate": 1})
    sides = {name: Exchange(config, env, name) for name in ("DDP", "GradientSum", "none")}
    for side in sides.values():
        side.gradients()
    ours, theirs = sides["GradientSum"].parameters, sides["DDP"].parameters
    pairs = [(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)]
    apart = max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None)
    calls: dict[str, Step] = {name: side.step for name, side in sides.items()}
    taken = interleaved({**calls, "alone": sides["GradientSum"].exchange}, steps, repeats)
    if not env.is_main:
        return
    size = sum(p.numel() * p.element_size() for p in ours) / 2**20
    print(f"\nexchange, {recipe}: {size:.1f} MiB of gradients, {env.world_size} ranks;", end=" ")
    print(f"gradients at most {apart:.1e} apart")
    print(f"{'against DDP':<24}{'time':>8}{'quartiles':>15}")
    for name in sides:
        print(f"{name:<24}{against(taken, 'DDP', name)}")
    print(f"{'the exchange alone':<24}{against(taken, 'DDP', 'alone')}")


def main() -> None:
    """Print the table of one process, then start two ranks for the others, or be one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--exchange", default="mae_digits,mae_cifar10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        pooled(options.steps, options.repeats)
        os.environ["OMP_NUM_THREADS"] = "1"
        torchrun.main(["--standalone", "--nproc-per-node=2", __file__, *sys.argv[1:]])
        return
    with process_group("cpu") as env:
        for recipe in options.exchange.split(","):
            exchange(recipe, env, options.steps, options.repeats)


if __name__ == "__main__":
    main()
