"""What types and compilation bring: eager float32 beside bfloat16 and compiled blocks.

    python benchmarks/precision.py [--recipe mae_vit_small] [--batch 16] [--steps 2] [--repeats 5]
                                   [--sides float32,float32+compile,...] [key=value ...]

Full optimizer steps of the recipe's model (forward, backward, clipping, update) on one device and
one made-up batch: no data is read. Every side is built once and warmed up, which compiles it; the
repeats take turns. *ratio* is the median of each repeat's speed against eager float32, with
quartiles. *work* is the model's operations, forward and backward, without what is computed again;
*mfu* is those per second over the device's dense peak in the side's type, where it is known.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch

from quadriga.contracts import MicroBatch
from quadriga.distributed.environment import DistEnv, pick_device
from quadriga.engine.build import build_objective, build_on_meta
from quadriga.engine.meters.cost import measure
from quadriga.engine.meters.devices import device_name, peak_flops, uses_tf32
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step.data_parallel import DataParallelExecutor
from quadriga.formatting import bytes_, duration, flops
from quadriga.recipes.find import find_recipe

SIDES = ("float32", "float32+compile", "bfloat16", "bfloat16+compile")


def main() -> None:
    """Read the command line, time the sides, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="mae_vit_small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    device = pick_device(options.device, 0)
    pairs = dict(word.split("=", 1) for word in options.overrides)
    config: RunConfig = find_recipe(options.recipe)()
    config = config.override({"train.batch_size": str(options.batch), **pairs})
    names = options.sides.split(",")
    sides = {name: Side(config, name, device) for name in names}
    compiled = {name: side.seconds(3) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(options.repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(sides[name].seconds(options.steps))
    report(config, device, sides, times, compiled)


def report(
    config: RunConfig,
    device: torch.device,
    sides: dict[str, Side],
    times: dict[str, list[float]],
    warm: dict[str, float],
) -> None:
    """Print the table."""
    batch = config.train.batch_size
    example = config.views.build("train").example(1, torch.device("meta"))
    work = measure(build_on_meta(config), example).training_flops * batch
    print(f"{config.name}, batch {batch}, {device_name(device)}, {torch.get_num_threads()} threads")
    print(f"work per step {flops(work)}")
    print(
        f"{'side':<20}{'step':>10}{'images/s':>10}{'speed':>8}{'quartiles':>15}{'work/s':>16}",
        end="",
    )
    print(f"{'mfu':>8}{'memory':>12}{'warm-up':>10}")
    base = times[next(iter(times))]
    for name, found in times.items():
        ratios = [one / own for one, own in zip(base, found, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        step = statistics.median(found)
        rate = f"{flops(work / step)}/s"
        line = f"{name:<20}{duration(step):>10}{batch / step:>10.1f}{middle:>8.2f}"
        line += f"{low:>8.2f}-{high:.2f}{rate:>18}{sides[name].mfu(work / step):>8}"
        print(line + f"{sides[name].memory:>12}{duration(3 * warm[name]):>10}")


class Side:
    """One way of computing the steps."""

    def __init__(self, config: RunConfig, name: str, device: torch.device) -> None:
        """Build the executor of ``TYPE`` or ``TYPE+compile``."""
        precision, _, rest = name.partition("+")
        config = config.override(
            {"train.precision": precision, "train.compile": str(rest == "compile").lower()}
        )
        env = DistEnv(0, 1, 0, 1, device)
        plan = make_plan(config, 10**9, 1)
        objective = build_objective(config, device, config.seed)
        self._executor = DataParallelExecutor(objective, config, plan, env)
        micro = plan.batch_size // plan.accumulate
        self._batch = MicroBatch(config.views.build("train").example(micro, device))
        self._device, self._done, self._precision = device, 0, precision
        self.memory = "-"

    def _batches(self) -> Iterator[MicroBatch]:
        while True:
            yield self._batch

    def seconds(self, steps: int) -> float:
        """Make `steps` steps and return the seconds that one took."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        began = time.perf_counter()
        span = range(self._done, self._done + steps)
        outputs = list(self._executor.run(self._batches(), span))
        float(outputs[-1].metrics["loss"])  # waits for the device
        self._done += steps
        seconds = (time.perf_counter() - began) / steps
        if self._device.type == "cuda":
            self.memory = bytes_(torch.cuda.max_memory_allocated(self._device))
        return seconds

    def mfu(self, flops_per_second: float) -> str:
        """Return the share of the device's dense peak in percent, "-" where that is unknown."""
        dtype = getattr(torch, self._precision)
        peak = peak_flops(device_name(self._device), dtype, uses_tf32())
        return "-" if peak is None else f"{100 * flops_per_second / peak:.1f} %"


if __name__ == "__main__":
    main()
