"""What sharding costs: DDP beside FSDP and HSDP, the same steps, interleaved in one run.

    python benchmarks/layouts.py [--ranks 2] [--recipe mae_cifar10] [--steps 5] [--repeats 7]
                                 [--accumulate 1] [key=value ...]

Starts its ranks by itself. Every layout is built once, in the same processes, on the same weights
and batches; the repeats take turns. *step* is the median over the repeats of rank 0's wall time
per step, *ratio* the median of each repeat's ratio to DDP's, with quartiles. *state* is what a
rank holds of parameters, optimizer state and average, *sent* the bytes that its part of the
collectives of one step moves in theory (ring): DDP 2 G (n-1)/n for gradients of G bytes, FSDP that
plus one more gather of the weights, or none of them where they stay gathered.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator

import torch
from torch.distributed import run as torchrun

from quadriga.contracts import MicroBatch
from quadriga.distributed.collectives import local_part
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import build_objective
from quadriga.engine.logs.environment import cores
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan, make_plan
from quadriga.engine.step.data_parallel import DataParallelExecutor
from quadriga.formatting import bytes_, duration
from quadriga.recipes.find import find_recipe

SIDES = {
    "ddp": {"train.parallel": "ddp"},
    "fsdp": {"train.parallel": "fsdp"},
    "fsdp, kept after forward": {
        "train.parallel": "fsdp",
        "train.reshard_after_forward": "false",
    },
    "hsdp (2 shards)": {"train.parallel": "hsdp", "train.shard_ranks": "2"},
}


def main() -> None:
    """Read the command line; start the ranks, or be one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--recipe", default="mae_cifar10")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    if "RANK" not in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // options.ranks)))
        launch = ["--standalone", f"--nproc-per-node={options.ranks}", __file__, *sys.argv[1:]]
        torchrun.main(launch)
        return
    config: RunConfig = find_recipe(options.recipe)()
    pairs = [word.split("=", 1) for word in options.overrides]
    config = config.override({"train.accumulate": str(options.accumulate), **dict(pairs)})
    with process_group("auto") as env:
        compare(config, env, options.steps, options.repeats)


def compare(config: RunConfig, env: DistEnv, steps: int, repeats: int) -> None:
    """Time every layout that these ranks can have and print the table on rank 0."""
    plan = make_plan(config, 10**9, env.world_size)
    sides = {
        name: Side(config.override(values), plan, env)
        for name, values in SIDES.items()
        if "hsdp" not in name or env.world_size >= 4
    }
    for side in sides.values():
        side.seconds(2)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        order = list(sides)[repeat % len(sides) :] + list(sides)[: repeat % len(sides)]
        for name in order:
            times[name].append(sides[name].seconds(steps))
    if not env.is_main:
        return
    print(f"{config.name}, {env.world_size} ranks, batch {plan.batch_size}, {env.device}")
    print(f"{'layout':<26}{'step':>10}{'ratio':>8}{'quartiles':>15}{'state':>12}{'sent':>12}")
    for name, found in times.items():
        ratios = [one / base for one, base in zip(found, times["ddp"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        step, held = duration(statistics.median(found)), bytes_(sides[name].state_bytes())
        sent = bytes_(sides[name].sent_bytes(name))
        print(f"{name:<26}{step:>10}{middle:>8.3f}{low:>8.3f}-{high:.3f}{held:>12}{sent:>12}")


class Side:
    """One layout of the run."""

    def __init__(self, config: RunConfig, plan: RunPlan, env: DistEnv) -> None:
        """Build it; every rank calls it."""
        objective = build_objective(config, env.device, config.seed)
        self._executor = DataParallelExecutor(objective, config, plan, env)
        self._plan, self._env, self._done = plan, env, 0
        transform = config.views.build("train")
        micro = plan.batch_size // (plan.world_size * plan.accumulate)
        self._batch = MicroBatch(transform.example(micro, env.device))

    def _batches(self) -> Iterator[MicroBatch]:
        while True:
            yield self._batch

    def seconds(self, steps: int) -> float:
        """Make `steps` steps and return the seconds that one took."""
        if self._env.world_size > 1:
            torch.distributed.barrier()
        began = time.perf_counter()
        span = range(self._done, self._done + steps)
        outputs = list(self._executor.run(self._batches(), span))
        float(outputs[-1].metrics["loss"])  # waits for the device
        self._done += steps
        return (time.perf_counter() - began) / steps

    def state_bytes(self) -> int:
        """Return the bytes of this rank's part of the state."""
        return sum(local_part(t).nbytes for t in self._executor.state_dict().values())

    def sent_bytes(self, name: str) -> float:
        """Return the bytes that a rank sends in one step, by the ring's arithmetic."""
        parameters = [p for p in self._executor.objective.parameters() if p.requires_grad]
        total = 4 * sum(p.numel() for p in parameters)
        ring = total * (self._env.world_size - 1) / self._env.world_size
        gathers = self._plan.accumulate * 2
        return {
            "ddp": 2 * ring,
            "fsdp": (1 + gathers) * ring,
            "fsdp, kept after forward": 2 * ring,
        }.get(name, float("nan"))


if __name__ == "__main__":
    main()
