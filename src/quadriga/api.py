"""Evaluation of a saved run, as ``quadriga eval`` and Python callers use it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from quadriga.config.base import kinds
from quadriga.config.provenance import read_overrides
from quadriga.contracts import EvaluationResult, EvaluatorConfig
from quadriga.distributed.allocator import is_out_of_memory
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine import evaluate as evaluate_module
from quadriga.engine import preflight
from quadriga.engine.build import build_on_meta
from quadriga.engine.checkpoint.store import step_of
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import EvaluationRecord, differences, find_record, read_records
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.formatting import bytes_
from quadriga.report.run import write_report


def evaluate(
    run: Path, words: Sequence[str], device: str, again: bool = False
) -> list[EvaluationResult]:
    """Evaluate a run's newest whole checkpoint with some protocols and write its report.

    Args:
        run: The work directory.
        words: Names of protocols, several in one word with commas, and ``key=value`` overrides, a
            key being a protocol's or the run's.
        device: Where to run.
        again: Whether protocols that have been run with these values are run once more.

    Returns:
        One result per protocol, in order, those that had been found before too.

    Raises:
        UserError: No run, no whole checkpoint, or an unknown protocol or key.
    """
    directory = RunDirectory(run)
    saved = directory.read_config().config
    named = [word for word in words if "=" not in word]
    names = [name for word in named for name in word.split(",") if name]
    values = read_overrides([word for word in words if "=" in word])
    try:
        config = evaluate_module.choose_protocols(saved, names, values)
        if not config.evaluation.protocols:
            valid = ", ".join(kinds(EvaluatorConfig))
            raise UserError(f"{run} names no protocols; name some: {valid}")
        preflight.check_weights(config)
    except UserError as error:
        error.on_every_rank = True
        raise
    with (
        process_group(device) as env,
        Console(env.is_main) as console,
        _memory_named(config, env),
    ):
        checkpoint = evaluate_module.find_checkpoint(run, env, console)
        step = step_of(checkpoint)
        known = {} if again else from_main(lambda: _known(directory, step, config, saved), env)
        for record in known.values():
            when = f" on {record.time}" if record.time else ""
            console.say(evaluate_module.describe(record.result))
            console.say(f"{record.kind} was evaluated at step {step}{when}; --again does it anew")
        protocols = [p for p in config.evaluation.protocols if p.kind() not in known]
        found = {kind: record.result for kind, record in known.items()}
        if protocols:
            results = _run(config, saved, run, checkpoint, protocols, env, console)
            found |= {result.protocol: result for result in results}
        return [found[protocol.kind()] for protocol in config.evaluation.protocols]


def _run(
    config: RunConfig,
    saved: RunConfig,
    run: Path,
    checkpoint: Path,
    protocols: Sequence[EvaluatorConfig],
    env: DistEnv,
    console: Console,
) -> list[EvaluationResult]:
    """Run protocols on a run's checkpoint and write its report."""
    directory = RunDirectory(run)
    objective, step, ranks = evaluate_module.load_objective(config, run, env, console, checkpoint)
    from_main(directory.create, env)
    data = evaluate_module.evaluation_data(config)
    classes = evaluate_module.class_names(saved, directory, checkpoint, env)
    if not classes and preflight.is_classifier(config):
        # No names are known: labels are taken by number, if there are no more of them.
        preflight.check_classes(config, data("test"))
    context = evaluate_module.make_context(
        config, objective, data, directory.report, env, console, ranks, classes
    )
    results = evaluate_module.evaluate(config, protocols, context, step, console, run=saved)
    if env.is_main:
        console.say(f"report: {write_report(run)}")
    return results


def _known(
    directory: RunDirectory, step: int, config: RunConfig, run: RunConfig
) -> dict[str, EvaluationRecord]:
    """Return the records of the protocols that were run with these very values: kind -> record."""
    records = read_records(directory.report)
    found = {}
    for protocol in config.evaluation.protocols:
        overrides = differences(config, run, protocol)
        record = find_record(records, step, config, protocol, overrides)
        if record is not None:
            found[protocol.kind()] = record
    return found


@contextlib.contextmanager
def _memory_named(config: RunConfig, env: DistEnv) -> Iterator[None]:
    """Turn an out-of-memory error into a `UserError` that says how large the weights are."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        held = sum(p.numel() * p.element_size() for p in build_on_meta(config).parameters())
        raise UserError(
            f"rank {env.rank} of {env.world_size} ran out of memory with train.parallel="
            f"{config.train.parallel}: the weights alone are {bytes_(held)}, as many again are "
            "those of a random encoder, and files are read beside them; evaluate with "
            "train.parallel=fsdp on more ranks (torchrun -m quadriga eval)"
        ) from error
