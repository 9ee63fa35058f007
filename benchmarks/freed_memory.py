"""What keeping freed memory brings to steps on the CPU: beside the C library's own way.

    python benchmarks/freed_memory.py [--recipe mae_cifar10] [--batch 64] [--steps 8]
                                      [--repeats 5] [key=value ...]

Full optimizer steps on one made-up batch: no data is read. Each repeat is two processes of one
thread, in turns, as what a process has kept cannot be given back. *ratio* is the median over the
repeats of CPU seconds (user and system) per step against the library's own way, with quartiles;
*faults* are pages faulted in per step; *RSS* is the most that a process has held.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys

import torch

from precision import Side
from quadriga.distributed.allocator import keep_freed_memory
from quadriga.engine.run_config import RunConfig
from quadriga.recipes.find import find_recipe

SIDES = ("given back", "kept")


def main() -> None:
    """Read the command line; time both sides, or be one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="mae_cifar10")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(one(options)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats):
        for side in SIDES if repeat % 2 else reversed(SIDES):
            command = [sys.executable, *sys.argv, "--side", side]
            environ = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
            environ["OMP_NUM_THREADS"] = "1"
            done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)
            found[side].append(json.loads(done.stdout))
    report(found)


def one(options: argparse.Namespace) -> dict[str, float]:
    """Make the steps of one side; return CPU seconds and page faults per step, and the peak RSS."""
    if options.side == "kept" and not keep_freed_memory():
        raise SystemExit("this C library does not keep freed memory")
    torch.set_num_threads(1)
    pairs = dict(word.split("=", 1) for word in options.overrides)
    config: RunConfig = find_recipe(options.recipe)()
    config = config.override({"train.batch_size": str(options.batch), **pairs})
    side = Side(config, "float32", torch.device("cpu"))
    side.seconds(3)
    before = resource.getrusage(resource.RUSAGE_SELF)
    side.seconds(options.steps)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": spent / options.steps,
        "faults": (after.ru_minflt - before.ru_minflt) / options.steps,
        "gib": after.ru_maxrss / 2**20,
    }


def report(found: dict[str, list[dict[str, float]]]) -> None:
    """Print the table."""
    base = found[SIDES[0]]
    print(f"{'freed memory is':<18}{'CPU s/step':>12}{'ratio':>8}{'quartiles':>14}", end="")
    print(f"{'faults/step':>14}{'RSS':>12}")
    for side, runs in found.items():
        ratios = [own["seconds"] / one["seconds"] for one, own in zip(base, runs, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        seconds, faults, gib = (
            statistics.median(run[key] for run in runs) for key in ("seconds", "faults", "gib")
        )
        print(f"{side:<18}{seconds:>12.3f}{middle:>8.3f}{low:>8.3f}-{high:.3f}", end="")
        print(f"{faults:>14.0f}{gib:>8.2f} GiB")


if __name__ == "__main__":
    main()
