"""Run evaluation protocols and store their results."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quadriga import randomness
from quadriga.config.base import kinds
from quadriga.config.own_code import is_own, split
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
from quadriga.engine.checkpoint.store import newest_valid, read_manifest, read_objective
from quadriga.engine.classes import is_classifier
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import RECORDS, append_record, differences, record_of
from quadriga.engine.logs.times import evaluated
from quadriga.engine.run_config import EvaluationConfig, RunConfig
from quadriga.engine.step.precision import decided
from quadriga.engine.step.sharding import build_to_evaluate
from quadriga.errors import UserError, did_you_mean
from quadriga.formatting import measured


def evaluation_data(
    config: RunConfig,
    train: Dataset | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Callable[[Split], Dataset]:
    """Return what opens the part of a split that is evaluated on, each split once.

    Args:
        config: The run.
        train: Its whole training data, where that is open already.
        say: Told what a split that is opened has in it, where its data set says so.
    """
    counts = {"train": config.evaluation.train_samples, "test": config.evaluation.test_samples}

    @functools.cache
    def data(split: Split) -> Dataset:
        whole = train if split == "train" else None
        if whole is None:
            whole = config.data.build(split)
            whole.check()
            if whole.description:
                say(f"{split} data: {whole.description}")
        config.views.check(whole, split, None)
        count = counts[split]
        return whole if count is None else Subset(whole, count, config.seed)

    return data


def choose_protocols(config: RunConfig, names: Sequence[str], values: dict[str, str]) -> RunConfig:
    """Return the config with the named protocols and the overrides.

    Args:
        config: The run.
        names: Kinds of protocols to run; together with those in `values` they replace the run's.
        values: Overrides, such as ``knn.neighbours``, ``weights`` or a full config path. A protocol
            of the user's own goes by the name of its class: ``MyProtocol.field``.

    Raises:
        UserError: An unknown protocol or key.
    """
    valid = kinds(EvaluatorConfig)
    for name in names:
        if name not in valid and not is_own(name):
            raise UserError(f"unknown protocol {name}{did_you_mean(name, valid)}")
    configured = {protocol.kind(): protocol.as_dict() for protocol in config.evaluation.protocols}
    values = {key.rpartition(":")[2] if ".py:" in key else key: v for key, v in values.items()}
    kind_of = {split(kind)[1]: kind for kind in (*valid, *configured, *names)}
    first_words = [key.partition(".")[0] for key in values if "." in key]
    wanted = dict.fromkeys([*names, *(kind_of[word] for word in first_words if word in kind_of)])
    chosen = [configured.get(name, {"kind": name}) for name in wanted]
    if chosen:
        evaluation = {**config.evaluation.as_dict(), "protocols": chosen}
        evaluation = EvaluationConfig.from_dict(evaluation).as_dict()
        config = config.override({"evaluation": evaluation})
    protocols = config.evaluation.protocols
    order = [split(protocol.kind())[1] for protocol in protocols]
    paths = {}
    for key, value in values.items():
        first, _, rest = key.partition(".")
        if rest and order.count(first) == 1:
            key = f"evaluation.protocols.{order.index(first)}.{rest}"
        elif key == "weights":
            key = "evaluation.weights"
        elif key not in RunConfig.model_fields:
            of = [n for n, p in zip(order, protocols, strict=True) if key in type(p).model_fields]
            if of:
                raise UserError(f"unknown key {key}; did you mean {of[0]}.{key}?")
        paths[key] = value
    return config.override(paths, COMMAND_LINE) if paths else config


def find_checkpoint(run_dir: Path, env: DistEnv, console: Console) -> Path:
    """Return a run's newest valid checkpoint; every rank calls it.

    Raises:
        UserError: There is none.
    """
    checkpoints = RunDirectory(run_dir).checkpoints
    found = from_main(lambda: newest_valid(checkpoints, console.warn), env)
    if found is None:
        raise UserError(f"{run_dir} has no whole checkpoint to evaluate; train it first")
    return found


def load_objective(
    config: RunConfig,
    run_dir: Path,
    env: DistEnv,
    console: Console,
    checkpoint: Path | None = None,
) -> tuple[Objective, int, Ranks]:
    """Read the objective of a run's newest valid checkpoint, or of one that has been verified.

    Every rank calls it. Its weights are those that ``evaluation.weights`` names. A run that
    shards its state, or cuts its model, is read in shards over all ranks, whatever number
    trained it.

    Returns:
        The objective in evaluation mode, the step it is at, and the ranks, over whose shard axis
        it is sharded.

    Raises:
        UserError: The run has no whole checkpoint, or no moving average.
    """
    found = checkpoint or find_checkpoint(run_dir, env, console)
    is_parted = config.executor.is_cut or config.train.parallel != "ddp"
    ranks = make_ranks(env, shard=env.world_size if is_parted else 1)
    objective = build_to_evaluate(config, ranks, config.seed).eval()
    return objective, read_objective(found, objective, env, config.evaluation.weights), ranks


def class_names(
    run: RunConfig, directory: RunDirectory, checkpoint: Path, env: DistEnv
) -> tuple[str, ...]:
    """Return the classes that a run was trained on, in the order of its classifier's outputs.

    The checkpoint's manifest has them; those of older revisions are asked of the training data.
    Every rank must call this function.

    Returns:
        Their names; empty where they are not known, or the run classifies nothing.
    """

    def find() -> tuple[str, ...]:
        if not is_classifier(run):
            return ()
        known: Sequence[str] | None
        known = read_manifest(checkpoint).extra.get("classes") or directory.read_data().get(
            "classes"
        )
        if not known:
            with contextlib.suppress(UserError):
                known = run.data.build("train").classes
        return tuple(known or ())

    return from_main(find, env)


def make_context(
    config: RunConfig,
    objective: Objective,
    data: Callable[[Split], Dataset],
    folder: Path,
    env: DistEnv,
    console: Console,
    ranks: Ranks | None = None,
    classes: Sequence[str] = (),
    kept: dict[str, Any] | None = None,
) -> EvaluationContext:
    """Return the input of the protocols.

    Args:
        config: The run.
        objective: The objective to evaluate.
        data: `evaluation_data` of the run.
        folder: Folder for results and pictures.
        env: This process among the run's.
        console: Prints progress and warnings.
        ranks: The ranks, over whose shard axis a random objective is sharded like this one;
            without them each rank holds all of it.
        classes: Names of the classes that a classifier was trained on.
        kept: What earlier evaluations of the run have kept for later ones.

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
        fresh=lambda: build_to_evaluate(
            config, ranks or Ranks(env), randomness.fold(config.seed, "random encoder")
        ).eval(),
        data=data,
        transform=config.views.build("test"),
        env=env,
        seed=config.seed,
        output=folder,
        classes=tuple(classes) if is_classifier(config) else (),
        workers=config.evaluation.workers,
        precision=decided(config, env.device.type).get(
            "evaluation.precision", config.evaluation.precision
        ),
        report_progress=console.advance,
        warn=console.warn,
        kept={} if kept is None else kept,
    )


def evaluate(
    config: RunConfig,
    protocols: Sequence[EvaluatorConfig],
    context: EvaluationContext,
    step: int,
    console: Console,
    run: RunConfig | None = None,
    source: Mapping[str, Any] | None = None,
) -> list[EvaluationResult]:
    """Run `protocols` and append a record of what each finds; every rank calls it.

    Args:
        config: What is evaluated.
        protocols: What to run.
        context: What they work on; its output folder gets the records, and a folder for pictures.
        step: The step the objective is at, for the record.
        console: Where the metrics are said.
        run: The run's own config, from which `config` may differ. None where a run evaluates
            itself: the time is then its own, and noted with its others.
        source: What names the state, where it is not the run's at `step`; counts as a difference.

    Returns:
        One result per protocol, in order; the same on every rank.

    Raises:
        UserError: A protocol cannot evaluate this objective or data, or the results cannot be
            written.
    """
    objective, env = context.objective, context.env
    config = config.override({"evaluation.precision": context.precision})  # as it is recorded
    was_training = objective.training
    opened: dict[Split, Dataset] = {}
    objective.eval()
    results = []
    clock = contextlib.ExitStack()
    if run is None and env.is_main:
        clock.enter_context(evaluated(context.output.parent, step, env.world_size))
    try:
        with clock, _folder(context, step) as inner:
            inner = dataclasses.replace(inner, data=_noted(context.data, opened))
            for protocol in protocols:
                results.append(protocol.build().run(inner))
                console.say(describe(results[-1]))
                if env.is_main:
                    record = record_of(
                        results[-1],
                        step,
                        config,
                        protocol,
                        overrides=_overrides(config, run, protocol, source),
                        opened=opened,
                        folder=inner.output.relative_to(context.output).as_posix(),
                    )
                    with _writing(context.output / RECORDS):
                        append_record(context.output, record)
    finally:
        objective.train(was_training)
    return results


def _overrides(
    config: RunConfig,
    run: RunConfig | None,
    protocol: EvaluatorConfig,
    source: Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {**(source or {}), **({} if run is None else differences(config, run, protocol))}


def _noted(
    data: Callable[[Split], Dataset], opened: dict[Split, Dataset]
) -> Callable[[Split], Dataset]:
    def open_split(split: Split) -> Dataset:
        opened[split] = data(split)
        return opened[split]

    return open_split


@contextlib.contextmanager
def _folder(context: EvaluationContext, step: int) -> Iterator[EvaluationContext]:
    """Yield the context with a new folder for an evaluation's files, on the rank that writes."""
    if not context.env.is_main:
        yield context
        return
    above = context.output / "evaluations"
    with _writing(above):
        above.mkdir(exist_ok=True)
        number = 1
        while (folder := above / f"step_{step:08d}{f'_{number}' * (number > 1)}").exists():
            number += 1
        folder.mkdir()
    try:
        yield dataclasses.replace(context, output=folder)
    finally:
        for path in (folder, above):
            with contextlib.suppress(OSError):  # there are files in it
                path.rmdir()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; make room") from error


def describe(result: EvaluationResult) -> str:
    """Return one line with the protocol's metrics, each with the random encoder's value.

    Of a protocol that only draws, it names the pictures.
    """
    metrics = dict(result.metrics)
    parts = []
    for name, value in metrics.items():
        if name.endswith("_random"):
            continue
        metric, baseline = f"{result.protocol}.{name}", metrics.get(f"{name}_random")
        beside = "" if baseline is None else f" (random encoder {measured(metric, baseline)})"
        parts.append(f"{name} {measured(metric, value)}{beside}")
    return f"evaluation  {result.protocol}  {'  '.join(parts or result.pictures)}"
