"""Run a run's evaluation protocols and write down what they found."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from quadriga import randomness
from quadriga.contracts import (
    Dataset,
    EvaluationContext,
    EvaluationResult,
    EvaluatorConfig,
    Objective,
    Split,
)
from quadriga.data.subset import Subset
from quadriga.distributed.environment import DistEnv
from quadriga.engine.build import build_objective
from quadriga.engine.console import Console
from quadriga.engine.files import write_text
from quadriga.engine.run_config import RunConfig

RESULTS = "evaluation.json"


def evaluate(
    config: RunConfig,
    objective: Objective,
    protocols: Sequence[EvaluatorConfig],
    step: int,
    folder: Path,
    env: DistEnv,
    console: Console,
) -> list[EvaluationResult]:
    """Run `protocols` on the objective; every rank calls it and gets the same results.

    Args:
        config: The run's config: its data, views, model and seed.
        objective: The trained objective, on ``env.device``.
        protocols: What to run.
        step: The step the objective is at, for the record.
        folder: An existing folder for pictures and ``evaluation.json``.
        env: This process among the run's.
        console: Where progress is shown.

    Returns:
        One result per protocol, in order.

    Raises:
        UserError: A protocol cannot judge this objective or data.
    """
    context = EvaluationContext(
        objective=objective,
        fresh=_fresh(config, env.device),
        train=_part(config, "train", config.evaluation.train_samples),
        test=_part(config, "test", config.evaluation.test_samples),
        transform=config.views.build("test"),
        env=env,
        seed=config.seed,
        output=folder,
        workers=config.evaluation.workers,
        report_progress=console.advance,
    )
    was_training = objective.training
    objective.eval()
    results = []
    try:
        for protocol in protocols:
            with randomness.micro_batch(config.seed, step, 0, env.rank):
                results.append(protocol.build().run(context))
            console.say(describe(results[-1]))
    finally:
        objective.train(was_training)
    if env.is_main:
        merge_results(folder / RESULTS, step, results)
    return results


def _part(config: RunConfig, split: Split, count: int | None) -> Dataset:
    dataset = config.data.build(split)
    return dataset if count is None else Subset(dataset, count, config.seed)


def _fresh(config: RunConfig, device: torch.device) -> Callable[[], Objective]:
    return lambda: build_objective(
        config, device, randomness.fold(config.seed, "random encoder")
    ).eval()


def describe(result: EvaluationResult) -> str:
    """Return one line: the protocol and its numbers, each beside the random encoder's."""
    numbers = dict(result.numbers)
    parts = []
    for name, value in numbers.items():
        if name.endswith("_random"):
            continue
        baseline = numbers.get(f"{name}_random")
        beside = f" (random encoder {baseline:.2f})" if baseline is not None else ""
        parts.append(f"{name} {value:.4g}{beside}")
    return f"evaluation  {result.protocol}  {'  '.join(parts)}"


def read_results(path: Path) -> dict[str, Any]:
    """Return what evaluation.json holds; no results when there is none yet."""
    if not path.exists():
        return {"step": 0, "results": []}
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def merge_results(path: Path, step: int, results: Sequence[EvaluationResult]) -> None:
    """Write results, beside those of other protocols at the same step."""
    old = read_results(path)
    new = {result.protocol: asdict(result) for result in results}
    kept = [r for r in old["results"] if old["step"] == step and r["protocol"] not in new]
    merged = {"step": step, "results": [*kept, *new.values()]}
    write_text(path, json.dumps(merged, indent=2) + "\n")
