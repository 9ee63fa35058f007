"""What happens before the first step: checks, the checkpoint to go on from, what is said."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from quadriga.config.provenance import Resolved
from quadriga.contracts import Dataset, Objective
from quadriga.data.text.corpus import TextCorpus
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.data.views.supervised import SupervisedViewsConfig
from quadriga.distributed.environment import DistEnv
from quadriga.engine.build import build_on_meta, check_shapes
from quadriga.engine.checkpoint.store import (
    InvalidCheckpoint,
    list_checkpoints,
    newest_valid,
    read_manifest,
    set_aside_after,
    verify,
)
from quadriga.engine.classes import check_classes
from quadriga.engine.evaluate import check_weights, forget_results_after
from quadriga.engine.initial_weights import check_origins
from quadriga.engine.logger_set import check_kinds, check_loggers
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.environment import environment_facts
from quadriga.engine.logs.profile import check_profile
from quadriga.engine.logs.samples import rewind_samples
from quadriga.engine.run_config import RunConfig, config_hash
from quadriga.engine.run_plan import RunPlan, describe_batch, make_plan
from quadriga.engine.step.sharding import describe_layout, shard_ranks
from quadriga.errors import UserError
from quadriga.formatting import count
from quadriga.pipeline.topology import check_pipeline, describe_pipeline, holders_of, replicas_of
from quadriga.schedules.warmup import warmup_length


@dataclass(frozen=True)
class Request:
    """What the user asked for beside the config."""

    work_dir: Path
    resume: bool = False
    """Whether to go on with what the work directory holds, if anything."""
    resume_from: Path | None = None
    """A checkpoint to start from instead of the newest of the work directory."""


def check_start(
    config: RunConfig, world_size: int, dataset: Dataset | None = None
) -> tuple[Dataset, RunPlan]:
    """Try everything that needs no memory, no process and no work directory.

    Args:
        config: The run.
        world_size: Ranks it is to run on.
        dataset: Its training data, where it is open already.

    Returns:
        The training data and the run's numbers.

    Raises:
        UserError: The run cannot start.
    """
    check_kinds(config.log.loggers)
    check_loggers(config.log.loggers)
    if dataset is None:
        dataset = config.data.build("train")
    check_text(config, dataset)
    check_classes(config, dataset)
    check_shapes(config)
    shard_ranks(config.train, world_size, world_size)
    objective = build_on_meta(config)
    check_pipeline(config, objective, world_size)
    _check_independence(config, objective)
    check_weights(config)
    _check_keep_best(config)
    plan = make_plan(config, len(dataset), replicas_of(config, world_size))
    _check_mixing(config, plan)
    plan = dataclasses.replace(plan, data_identity=dataset.identity)
    check_profile(config.log, plan.total_steps)
    return dataset, plan


def _check_independence(config: RunConfig, objective: Objective) -> None:
    """Check that parts that train side by side cannot touch each other.

    Raises:
        UserError: They would share the scale of float16's loss, and the steps it leaves out.
    """
    parts = objective.independent_parts
    if parts and config.train.precision == "float16":
        raise UserError(
            f"train.precision must be float32 or bfloat16 for {len(parts)} modules in one process, "
            "whose steps float16 would leave out together, but is float16; set it, or train each "
            "in a run of its own"
        )


def check_text(config: RunConfig, dataset: Dataset) -> None:
    """Check that the views are for the data, and that the model is large enough for both.

    Raises:
        UserError: It is not so.
    """
    check_length(config)
    views, is_corpus = config.views, isinstance(dataset, TextCorpus)
    if is_corpus != isinstance(views, SentencePairsConfig) and (
        is_corpus or dataset.vocabulary_size is None
    ):
        wanted = "views.kind=sentence_pairs" if is_corpus else "data.kind=text_corpus"
        raise UserError(
            f"data.kind={config.data.kind()} and views.kind={views.kind()} do not go together: one "
            f"is of text; set {wanted}"
        )
    size, room = dataset.vocabulary_size, getattr(config.model, "vocabulary_size", None)
    if size is not None and room is not None and room < size:
        raise UserError(
            f"model.vocabulary_size must be at least {size} (the tokens of data.vocabulary), but "
            f"is {room}"
        )
    if isinstance(dataset, TextCorpus) and isinstance(views, SentencePairsConfig):
        views.check(dataset, "train")


def check_length(config: RunConfig) -> None:
    """Check that the model has a position for every token of a sample.

    Raises:
        UserError: It has fewer.
    """
    length = getattr(config.views, "max_length", 0)
    positions = getattr(config.model, "max_positions", 0)
    if positions and length > positions:
        raise UserError(
            f"views.max_length must be at most {positions} (model.max_positions), but is {length}"
        )


def _check_mixing(config: RunConfig, plan: RunPlan) -> None:
    """Check that every micro-batch has two samples to mix, where images are mixed.

    Raises:
        UserError: One has a single sample, and would be trained on unmixed.
    """
    views, parts = config.views, plan.world_size * plan.accumulate
    if isinstance(views, SupervisedViewsConfig) and views.mixing.on and plan.batch_size < 2 * parts:
        raise UserError(
            f"train.batch_size must be at least 2 x ranks x train.accumulate (2 x {parts}) where "
            f"views.mixup or views.cutmix mixes the images of a micro-batch, but is "
            f"{plan.batch_size}; lower train.accumulate, or set both to 0"
        )


def _check_keep_best(config: RunConfig) -> None:
    """Check that the run has the protocol whose number decides which checkpoint stays.

    Which numbers a protocol or a method has is known when the first are there.
    """
    name = config.checkpoint.keep_best
    if name is None:
        return
    protocols = [protocol.kind() for protocol in config.evaluation.protocols]
    if name in protocols:
        raise UserError(f"checkpoint.keep_best must name a number of {name}, such as {name}.top1")
    protocol, dot, _ = name.rpartition(".")
    if dot and protocol not in protocols:
        raise UserError(
            f"checkpoint.keep_best is {name}, but {protocol} is not among evaluation.protocols "
            f"({', '.join(protocols) or 'none'}); add it there, or use another number, such as loss"
        )


def choose(
    request: Request, directory: RunDirectory, config: RunConfig, plan: RunPlan, console: Console
) -> Path | None:
    """Return the checkpoint to start from, None to start at step 0."""
    if request.resume_from is not None:
        chosen = _chosen(request.resume_from, config, plan, console)
        set_aside_after(directory.checkpoints, read_manifest(chosen).step)
        return chosen
    found = newest_valid(directory.checkpoints, console.warn)
    if found is None:
        if list_checkpoints(directory.checkpoints):
            raise UserError(
                f"no checkpoint in {directory.checkpoints} is whole (see the warnings above); "
                "move the folder away to start anew"
            )
        if request.resume:
            console.say(f"nothing to resume in {directory.path}: starting at step 0")
        check_origins(config)
    elif read_manifest(found).config_hash != config_hash(
        config, plan.dataset_size, plan.data_identity
    ):
        raise UserError(
            f"work dir {directory.path} was trained on another number of samples than "
            f"{plan.dataset_size}, or with another vocabulary: the data has changed; restore it or "
            "choose another --work-dir"
        )
    elif not request.resume and read_manifest(found).step < plan.total_steps:
        raise UserError(
            f"work dir {directory.path} already holds this run, up to {found.name} of "
            f"{plan.total_steps} steps; add --resume to continue it or choose another --work-dir"
        )
    return found


def _chosen(path: Path, config: RunConfig, plan: RunPlan, console: Console) -> Path:
    """Check the checkpoint that the user named: a checkpoint folder, or a run's folder."""
    folder = path
    if (path / "checkpoints").is_dir():
        folder = newest_valid(path / "checkpoints", console.warn) or path
    try:
        manifest = verify(folder)
    except InvalidCheckpoint as error:
        raise UserError(
            f"checkpoint {folder} cannot be resumed: {error}; name a folder such as "
            "RUN/checkpoints/step_00001000"
        ) from error
    if manifest.config_hash != config_hash(config, plan.dataset_size, plan.data_identity):
        raise UserError(
            f"checkpoint {folder} is of a run with another config, or with another number of "
            f"samples than {plan.dataset_size}; resume it with the config it was made with "
            "(config.json in its run)"
        )
    return folder


def write_start(
    resolved: Resolved[RunConfig],
    directory: RunDirectory,
    env: DistEnv,
    objective: Objective,
    start: int,
) -> None:
    """Write what describes the run, and drop the logged steps that will be made again."""
    directory.write_config(resolved)
    parameters = sum(p.numel() for p in objective.parameters())
    directory.write_environment({**environment_facts(env), "parameters": parameters})
    directory.rewind_metrics(start)
    with directory.writing():
        rewind_samples(directory.samples, start)
        forget_results_after(directory.report, start)


def announce(
    console: Console,
    config: RunConfig,
    plan: RunPlan,
    objective: Objective,
    start: int,
    env: DistEnv,
) -> None:
    """Say what the run is."""
    parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    epochs = plan.total_steps * plan.batch_size / plan.dataset_size
    console.say(
        f"{config.name}: {config.objective.kind()} of {config.model.kind()}, "
        f"{count(parameters)} parameters, {plan.dataset_size} samples, "
        f"{plan.total_steps} steps = {epochs:.4g} epochs"
    )
    console.say(describe_batch(plan, config.optim, holders_of(config)))
    if config.pipeline.schedule != "none":
        console.say(describe_pipeline(config, objective, env.world_size))
    elif env.world_size > 1 or config.train.parallel != "ddp":
        console.say(describe_layout(config.train, env))
    warmup = warmup_length(config.schedule, plan.progress(0))
    if warmup >= plan.total_steps and env.is_main:
        console.warn(
            f"the warm-up of {warmup} steps is not over within the run's {plan.total_steps}: the "
            "learning rate never falls; shorten schedule.warmup_epochs or schedule.warmup_steps"
        )
    if start:
        console.say(f"resumed after step {start} of {plan.total_steps}")
