"""One rank of the mixture's equality tests: train, stop and go on; save what came out.

python mixture_worker.py FILE [key=value ...] [-- FILE [key=value ...]] ...
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from quadriga.config.provenance import Resolved
from quadriga.contracts import Batch, StepOutput
from quadriga.data.reading.stream import Part
from quadriga.distributed.collectives import all_gather_values, copy_whole, whole
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine.build import EXACT, build_loader, build_on_meta
from quadriga.engine.classes import infer_num_classes
from quadriga.engine.preflight import check_start
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.data_parallel import DataParallelExecutor
from quadriga.recipes.mixture import mixture_digits

STEPS = 5
CALM = ("optim.eps=1e-4", "optim.clip_norm=0.05", "ema.decay=0.9")
TINY = (
    "model.width=16",
    "model.heads=2",
    "objective.tasks.shapes.model.width=16",
    "objective.tasks.shapes.model.heads=2",
    "objective.tasks.shapes.objective.decoder_width=16",
    "model.drop_path=0.3",
    "objective.tasks.shapes.weight=0.5",
    "data.tasks.digits.batch_size=3",
    "data.tasks.shapes.batch_size=2",
    "data.tasks.shapes.data.train_samples=7",
    "train.batch_size=11",
    f"train.steps={STEPS}",
    "schedule.warmup_steps=2",
    "optim.lr_batch=11",
)


def mixture_config(words: Sequence[str] = ()) -> RunConfig:
    """Return the tiny mixture with overrides."""
    config = mixture_digits().override(dict(w.split("=", 1) for w in (*TINY, *CALM, *words)))
    return infer_num_classes(Resolved.of(config, "test")).config


def train_in(env: DistEnv, path: Path, words: Sequence[str]) -> None:
    """Make the steps at once, then in two halves; rank 0 saves both states and the samples."""
    config = mixture_config(words)
    samples: list[tuple[int, int, str, list[int], list[int]]] = []

    def note(step: int, part: Part, batch: Batch) -> None:
        index, key = batch["index"].tolist(), batch["key"].tolist()
        samples.append((step, part.places.start, part.task, index, key))

    straight, outputs = _steps(env, config, range(STEPS), None, note)
    first, _ = _steps(env, config, range(3), None)
    resumed, _ = _steps(env, config, range(3, STEPS), first)
    read = sorted(itertools.chain.from_iterable(all_gather_values(samples, env)))
    by_rank = all_gather_values(sorted({task for _, _, task, *_ in samples}), env)
    if env.is_main:
        named = {name for output in outputs for name in output.metrics}
        metrics = {n: torch.stack([o.metrics[n] for o in outputs]) for n in sorted(named)}
        norms = torch.stack([o.grad_norm for o in outputs])
        torch.save(
            {
                "state": {**straight, "grad_norms": norms},
                "resumed": resumed,
                "metrics": metrics,
                "samples": read,
                "counted": [output.samples for output in outputs],
                "by_rank": by_rank,
            },
            path,
        )


def _steps(
    env: DistEnv,
    config: RunConfig,
    steps: range,
    state: dict[str, torch.Tensor] | None,
    on_read: Callable[[int, Part, Batch], None] | None = None,
) -> tuple[dict[str, torch.Tensor], list[StepOutput]]:
    dataset, plan = check_start(config, env.world_size)
    executor = DataParallelExecutor(build_on_meta(config), config, plan, env)
    if state is not None:
        executor.match_state(state)
        with torch.no_grad():
            for name, tensor in executor.state_dict().items():
                copy_whole(tensor, state[name])
        executor._update.load_numbers(state)
    settings = EXACT.override({"workers": config.loader.workers})
    with build_loader(config, dataset, plan, env, settings, on_read=on_read) as loader:
        outputs = list(executor.run(loader.batches(steps), steps))
    return {n: whole(t.detach()).clone() for n, t in executor.state_dict().items()}, outputs


def main(words: list[str]) -> None:
    """Make every run on the command line."""
    with process_group("cpu") as env:
        for is_divider, group in itertools.groupby(words, lambda word: word == "--"):
            if not is_divider:
                path, *overrides = group
                train_in(env, Path(path), overrides)


if __name__ == "__main__":
    main(sys.argv[1:])
