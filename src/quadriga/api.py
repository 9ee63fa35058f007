"""What ``import quadriga`` offers: recipes, training, evaluation, trained encoders.

docs/api.md shows it at work. Data sets, methods, architectures and all other kinds are imported
from where they are, such as ``quadriga.models.vit``.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quadriga.config.base import kinds
from quadriga.config.own_code import code_options, is_own, load_code, load_named
from quadriga.config.provenance import Resolved, read_overrides
from quadriga.contracts import EvaluatorConfig
from quadriga.distributed.allocator import is_out_of_memory
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import DistEnv, read_launch
from quadriga.distributed.process_group import process_group
from quadriga.engine import evaluate as evaluate_module
from quadriga.engine import preflight, session
from quadriga.engine.build import build_on_meta
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.resume import Request
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.export.encoder import load_encoder
from quadriga.formatting import bytes_
from quadriga.launch.torchrun import run_ranks
from quadriga.recipes.find import of_recipe, with_overrides
from quadriga.report.run import write_report

__all__ = ["evaluate", "load_code", "load_encoder", "recipe", "train"]


def recipe(name: str, **values: Any) -> RunConfig:
    """Return the run of a recipe.

    Args:
        name: The recipe, or ``FILE.py:FUNCTION`` for one in a file of the user's own.
        values: Arguments of the recipe and keys of the config, ``**{"optim.lr": 1e-3}``.

    Raises:
        UserError: An unknown recipe or key, or a value that breaks a rule.
    """
    return with_overrides(*of_recipe(name, [(values, PYTHON)])).config


def train(config: RunConfig, work_dir: Path | str | None = None, resume: bool = False) -> Path:
    """Train a run, evaluate it and write its report, as ``quadriga train`` does.

    With ``train.ranks=1`` it trains in this process, else in new ones, which import the files of
    `load_code` as well.

    Args:
        config: The run.
        work_dir: Where the run lives; ``runs/NAME`` by default.
        resume: Whether to go on with the newest checkpoint of the work directory.

    Returns:
        The work directory.

    Raises:
        UserError: The run cannot start or continue, or a rank in another process failed.
    """
    resolved = preflight.infer_num_classes(Resolved.of(config, PYTHON))
    folder = Path(work_dir) if work_dir is not None else Path("runs") / config.name
    device, ranks = config.train.device, config.train.ranks
    if ranks > 1 and read_launch(os.environ).launcher == "none":
        _train_apart(resolved, folder, resume)
        return folder
    with (
        Preemption() as preemption,
        process_group(device) as env,
        Console(env.is_main) as console,
    ):
        session.run(resolved, Request(folder, resume), env, console, preemption)
        if env.is_main:
            console.say(f"report: {write_report(folder)}")
    return folder


def _train_apart(resolved: Resolved[RunConfig], folder: Path, resume: bool) -> None:
    """Train on several ranks, as a command that reads the config from a file."""
    ranks = resolved.config.train.ranks
    preflight.check_start(resolved.config, ranks)
    with tempfile.TemporaryDirectory(prefix="quadriga-") as temporary:
        file = Path(temporary) / "config.json"
        file.write_text(resolved.as_json(), encoding="utf-8")
        words = ["train", str(file), "--work-dir", str(folder), *["--resume"] * resume]
        code = run_ranks(ranks, [*words, *code_options()])
    if code != 0:
        raise UserError(f"the ranks of {folder} ended with exit code {code}; see what they said")


PYTHON = "Python"
"""Where the values of a config come from that a program made."""


def evaluate(run: Path | str, words: str | Sequence[str] = (), device: str = "auto") -> None:
    """Evaluate a run's newest whole checkpoint with some protocols and write its report.

    Args:
        run: The work directory.
        words: Names of protocols, and ``key=value`` overrides of a protocol or of the run.
        device: Where to run.

    Raises:
        UserError: No run, no whole checkpoint, or an unknown protocol or key.
    """
    run, words = Path(run), [words] if isinstance(words, str) else words
    directory = RunDirectory(run)
    saved = directory.read_config().config
    named = [word for word in words if "=" not in word]
    names = [load_named(word) if is_own(word) else word for word in named]
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
        for path, copy in directory.changed_code():
            console.warn(f"{path} differs from {copy}, with which the run was trained")
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
