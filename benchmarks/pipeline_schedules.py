"""Throughput of the pipeline schedules, ours and torch's, interleaved in one run.

    python benchmarks/pipeline_schedules.py [--ranks 2] [--recipe bert_mini] [--micro 4]
                                            [--accumulate 2,8] [--steps 8] [--repeats 5]
    python benchmarks/pipeline_schedules.py --sleep 10 --ranks 4 --accumulate 4,16

Starts its ranks by itself, one per stage. With ``--sleep F`` a stage computes nothing: its forward
pass sleeps F milliseconds and its backward pass twice as long, one half of it for the gradient of
the input and one for that of the weights, which zero-bubble schedules move apart. So any number of
stages can be timed on any number of cores; only order and messages are real.

*step* is the median over the repeats of the time per step within a segment of ``--steps`` steps;
*ratio* is that of 1f1b to it (the median of each repeat's ratio): above 1 is faster. *floor* is
the busiest rank's computation alone, from the sleeps, or from `sequential` divided by the stages.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed import run as torchrun

from quadriga.contracts import Batch, LossOutput, Objective, Stage
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import build_on_meta
from quadriga.engine.logs.environment import cores
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import make_plan
from quadriga.formatting import duration
from quadriga.models.parts.initialise import initialise
from quadriga.recipes.find import find_recipe

SIDES: dict[str, tuple[str, int, dict[str, str]]] = {
    "1f1b": ("1f1b", 1, {}),
    "2bw": ("2bw", 1, {}),
    "2bw, update not deferred": ("2bw", 1, {"executor.deferred_update": "false"}),
    "gpipe": ("gpipe", 1, {}),
    "sequential": ("sequential", 1, {}),
    "torch 1f1b": ("torch_1f1b", 1, {}),
    "torch gpipe": ("torch_gpipe", 1, {}),
    "torch interleaved x2": ("interleaved", 2, {}),
    "torch zero bubble": ("zero_bubble", 1, {}),
    "torch zero bubble V": ("zbv", 2, {}),
}


class _Sleep(torch.autograd.Function):
    """The identity, that takes its time."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, forward: float, backward: float) -> Tensor:
        ctx.backward_seconds = backward
        time.sleep(forward)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.backward_seconds)
        return gradient, None, None


@final
class SleepStage(Stage):
    """A stage that sleeps for each of its blocks."""

    def __init__(self, blocks: range, index: int, is_last: bool, seconds: float) -> None:
        """Sleep `seconds` in the forward pass of a block."""
        super().__init__()
        self.index, self._is_last, self._seconds = index, is_last, seconds * len(blocks)
        self.blocks = nn.ModuleDict({str(i): nn.Embedding(1, 8) for i in blocks})

    def initialise(self, seed: int) -> None:
        """Fill the parameters."""
        initialise(self, seed)

    def hidden_shape(self, batch: Batch) -> tuple[int, ...]:
        """Return (samples, 8)."""
        return (len(batch["index"]), 8)

    def forward(self, hidden: Tensor | None, batch: Batch) -> Tensor | LossOutput:
        """Sleep; the weights' part of the backward pass is a path of its own."""
        weights = torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
        if hidden is None:
            hidden = torch.zeros(self.hidden_shape(batch)) + 0 * weights
        hidden = _Sleep.apply(hidden, self._seconds, self._seconds)  # type: ignore[no-untyped-call]
        weights = _Sleep.apply(weights, 0.0, self._seconds)  # type: ignore[no-untyped-call]
        output = hidden + weights
        return LossOutput.of(output.square().mean(), None, {}) if self._is_last else output


@final
class SleepObjective(Objective):
    """Blocks that sleep."""

    def __init__(self, depth: int, seconds: float) -> None:
        """Make `depth` blocks of `seconds` each."""
        super().__init__()
        self.depth, self._seconds = depth, seconds
        self.blocks = nn.ModuleList(nn.Embedding(1, 8) for _ in range(depth))

    def initialise(self, seed: int) -> None:
        """Fill the parameters."""
        initialise(self, seed)

    def forward(self, batch: Batch) -> LossOutput:
        """Not used: only stages are run."""
        raise NotImplementedError

    def stages(self, depths: Sequence[int]) -> list[Stage]:
        """Cut."""
        ends = [sum(depths[: i + 1]) for i in range(len(depths))]
        return [
            SleepStage(range(end - depth, end), i, i == len(depths) - 1, self._seconds)
            for i, (depth, end) in enumerate(zip(depths, ends, strict=True))
        ]


def main() -> None:
    """Read the command line; start the ranks, or be one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--recipe", default="bert_mini")
    parser.add_argument("--micro", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--accumulate", default=None, help="micro-batches per step: d and 4 d")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sleep", type=float, default=None, help="milliseconds")
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    if "RANK" not in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // options.ranks)))
        launch = ["--standalone", f"--nproc-per-node={options.ranks}", __file__, *sys.argv[1:]]
        torchrun.main(launch)
        return
    given = options.accumulate or f"{options.ranks},{4 * options.ranks}"
    config: RunConfig = find_recipe(options.recipe)()
    config = config.override(dict(word.split("=", 1) for word in options.overrides))
    with process_group("auto") as env:
        for number in map(int, given.split(",")):
            compare(config, env, number, options)


def compare(config: RunConfig, env: DistEnv, accumulate: int, options: argparse.Namespace) -> None:
    """Time every schedule with so many micro-batches and print the table on rank 0."""
    sides = {}
    for name, (schedule, per_rank, more) in SIDES.items():
        values = {
            "train.accumulate": str(accumulate),
            "train.batch_size": str(accumulate * options.micro),
            "executor.kind": "pipeline",
            "executor.schedule": schedule,
            "executor.stages": str(env.world_size),
            "executor.stages_per_rank": str(per_rank),
            "executor.depths": "none",
            "views.padding": "fixed",
            **more,
        }
        sides[name] = Side(config.override(values), env, options.sleep)
        sides[name].seconds(2)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(options.repeats):
        order = list(sides)[repeat % len(sides) :] + list(sides)[: repeat % len(sides)]
        for name in order:
            times[name].append(sides[name].seconds(options.steps))
    for side in sides.values():
        side.close()
    if not env.is_main:
        return
    floor = statistics.median(times["sequential"]) / env.world_size
    if options.sleep is not None:
        floor = 3e-3 * options.sleep * accumulate
    what = config.name if options.sleep is None else f"sleeps of {options.sleep:g} ms"
    print(f"\n{what}, {env.world_size} stages, {accumulate} micro-batches, {options.steps} steps")
    print(f"{'schedule':<26}{'step':>10}{'ratio':>8}{'quartiles':>15}{'floor / step':>14}")
    for name, found in times.items():
        ratios = [base / one for one, base in zip(found, times["1f1b"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        step = statistics.median(found)
        quartiles = f"{low:.3f}-{high:.3f}"
        print(f"{name:<26}{duration(step):>10}{middle:>8.3f}{quartiles:>15}{floor / step:>14.2f}")


class Side:
    """One schedule of the run."""

    def __init__(self, config: RunConfig, env: DistEnv, sleep: float | None) -> None:
        """Build it; every rank calls it."""
        plan = make_plan(config, 10**9, 1)
        objective = build_on_meta(config)
        if sleep is not None:
            with torch.device("meta"):
                objective = SleepObjective(2 * env.world_size, sleep / 2000)
        self._executor: Any = config.executor.build(objective, config, plan, env)
        micro = plan.batch_size // plan.accumulate
        self._batch = config.views.build("train").example(micro, env.device)
        self._done = 0

    def _batches(self) -> Iterator[Batch]:
        while True:
            yield self._batch

    def seconds(self, steps: int) -> float:
        """Make `steps` steps in one segment and return the seconds that one took."""
        torch.distributed.barrier()
        began = time.perf_counter()
        span = range(self._done, self._done + steps)
        outputs = list(self._executor.run(self._batches(), span))
        float(outputs[-1].metrics["loss"])  # waits for the device
        torch.distributed.barrier()
        self._done += steps
        return (time.perf_counter() - began) / steps

    def close(self) -> None:
        """End what runs beside."""
        self._executor.close()


if __name__ == "__main__":
    main()
