"""The planner's ranking against the clock: predicted and measured steps of the same configurations.

    python benchmarks/planner.py [--steps 3] [--repeats 3] [--batch-size 32] [--width 256]
                                 [--depth 6] [--length 64] [--vocabulary 30522]

A profile is measured first, as by ``quadriga plan``, in a process of its own. Then two ranks, one
thread each, train a BERT on the embedded text: every schedule on the planned cut and on the equal
one, other micro-batches and recomputation, and two whole copies. Each configuration is built once;
the repeats take turns. *measured* is the median over the repeats of rank 0's seconds per step in
the middle of a segment. Prints one table, Spearman's rank correlation of the two columns, and the
planned cut against the equal one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch.distributed import run as torchrun

from quadriga.data.text.pydoc import PydocCorpusConfig
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import EXACT, build_loader, build_objective
from quadriga.engine.run_config import LogConfig, RunConfig, TrainConfig
from quadriga.engine.run_plan import make_plan
from quadriga.formatting import bytes_, duration
from quadriga.methods.masked_lm import MaskedLMConfig
from quadriga.models.bert import BertConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.pipeline.planner.cost import Candidate
from quadriga.pipeline.planner.measure import measure_network, measure_profile
from quadriga.pipeline.planner.profile import read_profile, save_profile
from quadriga.pipeline.planner.search import Plan, Planner
from quadriga.schedules.curves import WarmupCosineConfig

RANKS = 2
PROFILE = "QUADRIGA_BENCHMARK_PROFILE"
"""Environment variable with the path of the profile, for the ranks."""
MEMORY = 2**36


def main() -> None:
    """Read the command line; measure and start the ranks, or be one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=30522)
    options = parser.parse_args()
    config = bert(options)
    if "RANK" in os.environ:
        with process_group("cpu") as env:
            torch.set_num_threads(1)
            compare(config, env, options.steps, options.repeats)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        sizes = sorted({candidate.micro_batch for candidate in candidates(options.batch_size)})
        network = measure_network(device)
        profile = measure_profile(config, device, network, sizes, threads=1, patience=float("inf"))
        save_profile(profile, path)
        os.environ[PROFILE] = str(path)
        launch = ["--standalone", f"--nproc-per-node={RANKS}", __file__, *sys.argv[1:]]
        torchrun.main(launch)


def bert(options: argparse.Namespace) -> RunConfig:
    """Return a small BERT on the text that Python carries.

    The table of words is BERT's own, larger than the text's: it makes the heads heavy.
    """
    return RunConfig(
        name="planner benchmark",
        model=BertConfig(
            vocabulary_size=options.vocabulary,
            width=options.width,
            depth=options.depth,
            heads=4,
            mlp_width=4 * options.width,
            max_positions=options.length,
        ),
        objective=MaskedLMConfig(),
        data=PydocCorpusConfig(vocabulary_size=min(4096, options.vocabulary)),
        views=SentencePairsConfig(max_length=options.length),
        optim=AdamWConfig(lr=1e-4, lr_batch=options.batch_size),
        schedule=WarmupCosineConfig(),
        train=TrainConfig(steps=10_000, batch_size=options.batch_size, device="cpu"),
        log=LogConfig(loggers=()),
    )


def candidates(batch: int) -> list[Candidate]:
    """Return what is compared: schedules, micro-batches, recomputation, whole copies."""
    quarter, eighth = batch // 4, batch // 8
    found = [Candidate(1, 2, quarter, 4, "none", s) for s in ("sequential", "gpipe", "1f1b", "2bw")]
    found += [Candidate(1, 2, eighth, 8, "none", s) for s in ("sequential", "gpipe", "1f1b", "2bw")]
    found += [Candidate(1, 2, batch // 2, 2, "none", s) for s in ("1f1b", "2bw")]
    found += [Candidate(1, 2, quarter, 4, "full", s) for s in ("1f1b", "2bw")]
    found += [Candidate(2, 1, batch // 2, 1, "none", "none")]
    found += [Candidate(2, 1, eighth, 4, "none", "none")]
    return found


class Side:
    """One configuration of the run, predicted and ready to be measured."""

    def __init__(self, config: RunConfig, plan: Plan, cut: str, env: DistEnv) -> None:
        """Build it; every rank calls it."""
        self.plan, self.cut, self._done = plan, cut, 0
        candidate = plan.candidate
        whole = candidate.schedule == "none"
        stages: dict[str, Any] = {
            "executor.kind": "pipeline",
            "executor.schedule": candidate.schedule,
            "executor.stages": candidate.depth,
            "executor.depths": list(plan.depths),
        }
        self._config = config.override(
            {
                "train.accumulate": candidate.micro_batches,
                "train.recompute": candidate.recompute,
                **({"executor.kind": "data_parallel"} if whole else stages),
            }
        )
        executor = self._config.executor
        numbers = make_plan(self._config, 10**6, executor.share(env.rank, env.world_size).of)
        objective = build_objective(self._config, env.device, config.seed)
        self._executor = executor.build(objective, self._config, numbers, env)
        dataset = config.data.build("train")
        self._loader = build_loader(self._config, dataset, numbers, env, EXACT)

    def seconds(self, steps: int) -> float:
        """Train a segment and return the seconds of a step in its middle.

        2bw tells of a step before the step after next begins: the first and the last two
        outputs are left out.
        """
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        span = range(self._done, self._done + steps + 4)
        ends = []
        for output in self._executor.run(self._loader.batches(span), span):
            float(output.metrics["loss"])
            ends.append(time.perf_counter())
        self._done = span.stop
        return (ends[1 + steps] - ends[1]) / steps


def compare(config: RunConfig, env: DistEnv, steps: int, repeats: int) -> None:
    """Measure every configuration and print the table on rank 0."""
    profile = read_profile(Path(os.environ[PROFILE]), config.name, config.train.precision)
    batch = config.train.batch_size
    planner = Planner(profile, RANKS, batch, MEMORY)
    half = profile.blocks // 2
    sides = []
    for candidate in candidates(batch):
        best = planner.predict(candidate)
        sides.append(Side(config, best, "planned", env))
        equal = (half, profile.blocks - half)
        if candidate.depth == 2 and best.depths != equal:
            sides.append(Side(config, planner.predict(candidate, equal), "equal", env))
    for side in sides:
        side.seconds(1)
    times: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats):
        for number in _turned(range(len(sides)), repeat):
            times[number].append(sides[number].seconds(steps))
    if env.is_main:
        _print(config, sides, [statistics.median(each) for each in times])


def _turned(numbers: Sequence[int], by: int) -> list[int]:
    return [*numbers[by:], *numbers[:by]]


def _print(config: RunConfig, sides: Sequence[Side], measured: Sequence[float]) -> None:
    predicted = [side.plan.step_seconds for side in sides]
    print(f"{RANKS} ranks, batch {config.train.batch_size}, BERT {config.model.as_dict()}")
    print(
        f"{'schedule':<11}{'w x d':>6}{'m':>4}{'b':>4}  {'recompute':<10}{'cut':<16}"
        f"{'predicted':>10}{'measured':>10}{'ratio':>7}{'memory':>11}"
    )
    order = sorted(range(len(sides)), key=lambda number: predicted[number])
    for number in order:
        side, candidate = sides[number], sides[number].plan.candidate
        cut = f"{'-'.join(map(str, side.plan.depths))} {side.cut}"
        print(
            f"{candidate.schedule:<11}{candidate.width:>3} x {candidate.depth}"
            f"{candidate.micro_batches:>4}{candidate.micro_batch:>4}  {candidate.recompute:<10}"
            f"{cut:<16}{duration(predicted[number]):>10}{duration(measured[number]):>10}"
            f"{measured[number] / predicted[number]:>7.2f}{bytes_(side.plan.most_memory):>11}"
        )
    correlation = spearmanr(predicted, measured).statistic
    print(f"Spearman's rank correlation over {len(sides)} configurations: {correlation:.3f}")
    pairs: dict[Candidate, dict[str, float]] = {}
    for number, side in enumerate(sides):
        pairs.setdefault(side.plan.candidate, {})[side.cut] = measured[number]
    ratios = [p["equal"] / p["planned"] for p in pairs.values() if len(p) == 2]
    if ratios:
        print(
            f"speed of the planned cut against the equal one, {len(ratios)} pairs: median "
            f"{statistics.median(ratios):.3f}, worst {min(ratios):.3f}"
        )
    best = min(range(len(sides)), key=lambda number: predicted[number])
    print(f"the plan: {measured[best] / min(measured):.3f} of the fastest one's time")


if __name__ == "__main__":
    main()
