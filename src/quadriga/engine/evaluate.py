"""Run a run's evaluation protocols and write down what they found."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
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
from quadriga.data.text.corpus import TextCorpus
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.distributed.environment import DistEnv
from quadriga.engine.build import build_objective
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.times import evaluated
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.files import write_text
from quadriga.formatting import measured

RESULTS = "evaluation.json"


def make_context(
    config: RunConfig, objective: Objective, folder: Path, env: DistEnv, console: Console
) -> EvaluationContext:
    """Return what protocols work on.

    Raises:
        UserError: A split of the data is missing.
    """
    return EvaluationContext(
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
        warn=console.warn,
    )


def evaluate(
    protocols: Sequence[EvaluatorConfig],
    context: EvaluationContext,
    step: int,
    console: Console,
    overrides: Mapping[str, str] | None = None,
) -> list[EvaluationResult]:
    """Run `protocols` and write down what they find; every rank calls it.

    Args:
        protocols: What to run.
        context: What they work on; its output folder gets the pictures and ``evaluation.json``.
        step: The step the objective is at, for the record.
        console: Where the numbers are said.
        overrides: What differs from the run's own config: results of another combination of
            overrides are not kept beside these. None where a run judges itself: the time is then
            its own, and noted with its others.

    Returns:
        One result per protocol, in order; the same on every rank.

    Raises:
        UserError: A protocol cannot judge this objective or data, or the results cannot be
            written.
    """
    objective = context.objective
    was_training = objective.training
    objective.eval()
    results = []
    clock = contextlib.ExitStack()
    if overrides is None and context.env.is_main:
        clock.enter_context(evaluated(context.output.parent, step, context.env.world_size))
    try:
        with clock:
            for protocol in protocols:
                results.append(protocol.build().run(context))
                console.say(describe(results[-1]))
    finally:
        objective.train(was_training)
    if context.env.is_main:
        path = context.output / RESULTS
        try:
            merge_results(path, step, results, overrides)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; make room") from error
    return results


def check_weights(config: RunConfig) -> None:
    """Check that the weights to be judged are there.

    Raises:
        UserError: ``evaluation.weights`` is ema, and the run has no moving average.
    """
    if config.evaluation.weights == "ema" and config.ema.decay is None:
        raise UserError(
            "evaluation.weights=ema needs a moving average, but ema.decay is none; train with "
            "ema.decay set, such as 0.9999, or use evaluation.weights=raw"
        )


def missing_protocols(config: RunConfig, folder: Path, step: int) -> list[EvaluatorConfig]:
    """Return the run's protocols that have no result for `step` yet."""
    done = {result["protocol"] for result in _own_results(folder, step)}
    return [protocol for protocol in config.evaluation.protocols if protocol.kind() not in done]


def numbers_at(folder: Path, step: int) -> dict[str, float]:
    """Return what is known of `step`: ``PROTOCOL.NAME`` and the value."""
    return {
        f"{result['protocol']}.{name}": float(value)
        for result in _own_results(folder, step)
        for name, value in result["numbers"].items()
    }


def owes_evaluation(folder: Path, step: int, every: int) -> bool:
    """Return whether a run that goes on from `step` was stopped before that step was judged.

    Args:
        folder: Where ``evaluation.json`` is; it holds the results of the last step judged.
        step: Finished steps.
        every: Steps between evaluations.
    """
    return step > 0 and step % every == 0 and bool(read_results(folder / RESULTS)["step"] <= step)


def forget_results_after(folder: Path, step: int) -> None:
    """Drop results of a later step: it will be made again, and may be another one then.

    Raises:
        OSError: The file cannot be removed.
    """
    path = folder / RESULTS
    old = read_results(path)
    if old["step"] <= step:
        return
    kept = [entry for entry in old.get("history", []) if entry["step"] <= step]
    if kept:
        write_text(path, json.dumps({"step": 0, "results": [], "history": kept}, indent=2) + "\n")
    else:
        path.unlink()


def _own_results(folder: Path, step: int) -> list[dict[str, Any]]:
    old = read_results(folder / RESULTS)
    own = old["step"] == step and not old.get("overrides")
    return list(old["results"]) if own else []


def _part(config: RunConfig, split: Split, count: int | None) -> Dataset:
    dataset = config.data.build(split)
    if isinstance(config.views, SentencePairsConfig) and isinstance(dataset, TextCorpus):
        config.views.check(dataset, split)
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
        metric, baseline = f"{result.protocol}.{name}", numbers.get(f"{name}_random")
        beside = "" if baseline is None else f" (random encoder {measured(metric, baseline)})"
        parts.append(f"{name} {measured(metric, value)}{beside}")
    return f"evaluation  {result.protocol}  {'  '.join(parts)}"


def read_results(path: Path) -> dict[str, Any]:
    """Return what evaluation.json holds; no results when there is none yet or it is damaged."""
    nothing: dict[str, Any] = {"step": 0, "results": []}
    if not path.exists():
        return nothing
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return loaded if {"step", "results"} <= loaded.keys() else nothing
    except (ValueError, AttributeError):
        return nothing


def merge_results(
    path: Path,
    step: int,
    results: Sequence[EvaluationResult],
    overrides: Mapping[str, str] | None = None,
) -> None:
    """Write results, beside those of other protocols at the same step with the same overrides.

    ``history`` keeps the numbers of every step that was judged without overrides.
    """
    old = read_results(path)
    new = {result.protocol: asdict(result) for result in results}
    changed = dict(overrides or {})
    same = old["step"] == step and old.get("overrides", {}) == changed
    kept = [r for r in old["results"] if same and r["protocol"] not in new]
    merged: dict[str, Any] = {"step": step, "overrides": changed}
    merged["results"] = [*kept, *new.values()]
    merged["history"] = old.get("history", [])
    if not changed:
        numbers = {
            f"{result['protocol']}.{name}": float(value)
            for result in merged["results"]
            for name, value in result["numbers"].items()
        }
        others = [entry for entry in merged["history"] if entry["step"] != step]
        entries = [*others, {"step": step, "numbers": numbers}]
        merged["history"] = sorted(entries, key=lambda entry: int(entry["step"]))
    write_text(path, json.dumps(merged, indent=2) + "\n")
