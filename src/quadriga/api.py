"""Evaluation of a saved run, as ``quadriga eval`` and Python callers use it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from quadriga.config.base import kinds
from quadriga.config.provenance import read_overrides
from quadriga.contracts import EvaluatorConfig
from quadriga.distributed.allocator import is_out_of_memory
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.process_group import process_group
from quadriga.engine import evaluate as evaluate_module
from quadriga.engine import preflight
from quadriga.engine.build import build_on_meta
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.formatting import bytes_
from quadriga.report.run import write_report


def evaluate(run: Path, words: Sequence[str], device: str) -> None:
    """Evaluate a run's newest whole checkpoint with some protocols and write its report.

    Args:
        run: The work directory.
        words: Names of protocols, and ``key=value`` overrides of a protocol or of the run.
        device: Where to run.

    Raises:
        UserError: No run, no whole checkpoint, or an unknown protocol or key.
    """
    directory = RunDirectory(run)
    saved = directory.read_config().config
    names = [word for word in words if "=" not in word]
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
        objective, step, ranks = evaluate_module.load_objective(config, run, env, console)
        from_main(directory.create, env)
        data = evaluate_module.evaluation_data(config)
        context = evaluate_module.make_context(
            config, objective, data, directory.report, env, console, ranks
        )
        protocols = config.evaluation.protocols
        evaluate_module.evaluate(protocols, context, step, console, overrides=values)
        if env.is_main:
            console.say(f"report: {write_report(run)}")


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
