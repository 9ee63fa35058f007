"""Run evaluation protocols and store their results."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from quadriga import randomness
from quadriga.config.base import kinds
from quadriga.config.own_code import is_own
from quadriga.config.provenance import COMMAND_LINE
from quadriga.contracts import (
    Dataset,
    EvaluationContext,
    EvaluationResult,
    EvaluatorConfig,
    Objective,
    Split,
)
from quadriga.data.parts.subsets import Subset
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.mesh import Ranks, make_ranks
from quadriga.engine.build import build_objective, build_on_meta
from quadriga.engine.checkpoint.store import newest_valid, read_objective
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import RESULTS, merge_results
from quadriga.engine.logs.times import evaluated
from quadriga.engine.run_config import EvaluationConfig, RunConfig
from quadriga.engine.step.sharding import place
from quadriga.errors import UserError, did_you_mean
from quadriga.formatting import measured


def evaluation_data(config: RunConfig, train: Dataset | None = None) -> Callable[[Split], Dataset]:
    """Return a function that opens the evaluated part of a split, each split once.

    Args:
        config: The run.
        train: Its whole training data, if already open.
    """
    counts = {"train": config.evaluation.train_samples, "test": config.evaluation.test_samples}

    @functools.cache
    def data(split: Split) -> Dataset:
        whole = train if split == "train" else None
        if whole is None:
            whole = config.data.build(split)
        config.views.check(whole, split, None)
        count = counts[split]
        return whole if count is None else Subset(whole, count, config.seed)

    return data


def choose_protocols(config: RunConfig, names: Sequence[str], values: dict[str, str]) -> RunConfig:
    """Return the config with the named protocols and the overrides.

    Args:
        config: The run.
        names: Kinds of protocols to run; together with those in `values` they replace the run's.
        values: Overrides, such as ``knn.neighbours``, ``weights`` or a full config path.

    Raises:
        UserError: An unknown protocol or key.
    """
    valid = kinds(EvaluatorConfig)
    for name in names:
        if name not in valid and not is_own(name):
            raise UserError(f"unknown protocol {name}{did_you_mean(name, valid)}")
    wanted = dict.fromkeys([*names, *(k.split(".")[0] for k in values if k.split(".")[0] in valid)])
    configured = {protocol.kind(): protocol.as_dict() for protocol in config.evaluation.protocols}
    chosen = [configured.get(name, {"kind": name}) for name in wanted]
    if chosen:
        evaluation = {**config.evaluation.as_dict(), "protocols": chosen}
        evaluation = EvaluationConfig.from_dict(evaluation).as_dict()
        config = config.override({"evaluation": evaluation})
    order = [protocol.kind() for protocol in config.evaluation.protocols]
    paths = {}
    for key, value in values.items():
        first, _, rest = key.partition(".")
        if first in order and rest:
            key = f"evaluation.protocols.{order.index(first)}.{rest}"
        elif key == "weights":
            key = "evaluation.weights"
        paths[key] = value
    return config.override(paths, COMMAND_LINE) if paths else config


def load_objective(
    config: RunConfig, run_dir: Path, env: DistEnv, console: Console
) -> tuple[Objective, int, Ranks | None]:
    """Read the objective of a run's newest valid checkpoint; every rank calls it.

    Its weights are those that ``evaluation.weights`` names. A run that shards its state is read
    in shards over all ranks, whatever number trained it.

    Returns:
        The objective in evaluation mode, the step it is at, and the ranks that it is sharded
        over, if it is.

    Raises:
        UserError: The run has no whole checkpoint, or no moving average.
    """
    directory = RunDirectory(run_dir)
    found = from_main(lambda: newest_valid(directory.checkpoints, console.warn), env)
    if found is None:
        raise UserError(f"{run_dir} has no whole checkpoint to evaluate; train it first")
    ranks = None
    if env.world_size > 1 and config.train.parallel != "ddp":
        ranks = make_ranks(env, shard=env.world_size)
    objective = _build(config, env, ranks, config.seed).eval()
    return objective, read_objective(found, objective, env, config.evaluation.weights), ranks


def make_context(
    config: RunConfig,
    objective: Objective,
    data: Callable[[Split], Dataset],
    folder: Path,
    env: DistEnv,
    console: Console,
    ranks: Ranks | None = None,
) -> EvaluationContext:
    """Return the input of the protocols.

    Args:
        config: The run.
        objective: The objective to evaluate.
        data: `evaluation_data` of the run.
        folder: Folder for results and pictures.
        env: This process among the run's.
        console: Prints progress and warnings.
        ranks: The ranks over which the objective is sharded as the run says; without them each
            rank holds all of it.

    Raises:
        UserError: The run is a mixture of tasks.
    """
    if config.data.by_task():
        raise UserError(
            f"{config.name} is a mixture of tasks, which protocols cannot evaluate: each evaluates "
            "one data set; its own losses and metrics are in metrics.jsonl"
        )
    return EvaluationContext(
        objective=objective,
        fresh=lambda: _build(
            config, env, ranks, randomness.fold(config.seed, "random encoder")
        ).eval(),
        data=data,
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
    """Run `protocols` and store their results; every rank calls it.

    Args:
        protocols: The protocols to run.
        context: Their input; pictures and ``evaluation.json`` go to its output folder.
        step: The objective's step, for the record.
        console: Prints the metrics.
        overrides: Differences from the run's own config; results with other overrides are
            replaced. None if a run evaluates itself; its times.jsonl then records the time.

    Returns:
        One result per protocol, in order; the same on every rank.

    Raises:
        UserError: A protocol cannot evaluate this objective or data, or the results cannot be
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


def _build(config: RunConfig, env: DistEnv, ranks: Ranks | None, seed: int) -> Objective:
    """Return the objective with initial values; with `ranks` they hold it as the run says."""
    if ranks is None:
        return build_objective(config, env.device, seed)
    objective = build_on_meta(config)
    place(objective, config.train, ranks, seed)
    return objective


def describe(result: EvaluationResult) -> str:
    """Return one line with the protocol's metrics, each with the random encoder's value."""
    metrics = dict(result.metrics)
    parts = []
    for name, value in metrics.items():
        if name.endswith("_random"):
            continue
        metric, baseline = f"{result.protocol}.{name}", metrics.get(f"{name}_random")
        beside = "" if baseline is None else f" (random encoder {measured(metric, baseline)})"
        parts.append(f"{name} {measured(metric, value)}{beside}")
    return f"evaluation  {result.protocol}  {'  '.join(parts)}"
