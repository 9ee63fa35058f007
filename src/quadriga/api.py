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
from quadriga.contracts import Dataset, EvaluationResult, EvaluatorConfig
from quadriga.distributed.allocator import is_out_of_memory
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import DistEnv, read_launch
from quadriga.distributed.process_group import process_group
from quadriga.engine import evaluate as evaluate_module
from quadriga.engine import preflight, session
from quadriga.engine.build import build_on_meta
from quadriga.engine.classes import infer_num_classes, is_classifier
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.results import EvaluationRecord, differences, find_record, read_records
from quadriga.engine.resume import Request
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.precision import decided
from quadriga.engine.subject import Subject, open_subject
from quadriga.errors import UserError
from quadriga.export.encoder import load_encoder
from quadriga.formatting import bytes_
from quadriga.launch.torchrun import run_ranks
from quadriga.recipes.arguments import of_recipe, with_overrides
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
    resolved = infer_num_classes(Resolved.of(config, PYTHON))
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


def evaluate(
    path: Path | str,
    words: str | Sequence[str] = (),
    device: str = "auto",
    again: bool = False,
    out: Path | None = None,
) -> list[EvaluationResult]:
    """Evaluate a run or weights with some protocols, and write the report.

    Args:
        path: A run (its newest whole checkpoint), a checkpoint of one, a file of weights or the
            folder of a published model.
        words: Names of protocols, several in one word with commas, and ``key=value`` overrides, a
            key being a protocol's or the run's.
        device: Where to run.
        again: Whether protocols that have been run with these values are run once more.
        out: Where the results of weights go; ``runs/eval_NAME`` by default.

    Returns:
        One result per protocol, in order, those that had been found before too.

    Raises:
        UserError: Nothing is there to be evaluated, or an unknown protocol or key.
    """
    path, words = Path(path), [words] if isinstance(words, str) else words
    subject = open_subject(path, out)
    named = [word for word in words if "=" not in word]
    names = [name for word in named for name in word.split(",") if name]
    names = [load_named(name) if is_own(name) else name for name in names]
    values = read_overrides([word for word in words if "=" in word])
    try:
        config = evaluate_module.choose_protocols(subject.run, names, values)
        if not config.evaluation.protocols:
            valid = ", ".join(kinds(EvaluatorConfig))
            raise UserError(f"{path} names no protocols; name some: {valid}")
        preflight.check_weights(config)
    except UserError as error:
        error.on_every_rank = True
        raise
    with (
        process_group(device) as env,
        Console(env.is_main) as console,
        _memory_named(config, env),
    ):
        for file, copy in subject.directory.changed_code():
            console.warn(f"{file} differs from {copy}, with which the run was trained")
        config = config.override(from_main(lambda: decided(config, env.device.type), env))
        found, step = subject.find(env, console)
        known = {} if again else from_main(lambda: _known(subject, step, config), env)
        for record in known.values():
            when = f" on {record.time}" if record.time else ""
            console.say(evaluate_module.describe(record.result))
            console.say(f"{record.kind} was evaluated at step {step}{when}; --again does it anew")
        results = {kind: record.result for kind, record in known.items()}
        protocols = [p for p in config.evaluation.protocols if p.kind() not in known]
        if protocols:
            made = _run(subject, config, found, step, protocols, env, console)
            results |= {p.kind(): result for p, result in zip(protocols, made, strict=True)}
        return [results[protocol.kind()] for protocol in config.evaluation.protocols]


def _run(
    subject: Subject,
    config: RunConfig,
    found: Path,
    step: int,
    protocols: Sequence[EvaluatorConfig],
    env: DistEnv,
    console: Console,
) -> list[EvaluationResult]:
    """Run protocols on what was found and write the report."""
    directory = subject.directory
    objective, ranks, classes = subject.load(config, found, env, console)
    from_main(directory.create, env)
    data = evaluate_module.evaluation_data(config, say=console.say)
    if not classes and any(protocol.kind() == "held_out" for protocol in protocols):
        _check_by_number(config, data("test"), console)
    context = evaluate_module.make_context(
        config, objective, data, directory.report, env, console, ranks, classes
    )
    for protocol in protocols:
        protocol.build().check(context)
    results = evaluate_module.evaluate(
        config, protocols, context, step, console, run=subject.run, source=subject.source
    )
    if env.is_main:
        console.say(f"report: {write_report(directory.path)}")
    return results


def _check_by_number(config: RunConfig, dataset: Dataset, console: Console) -> None:
    """Take labels by number where nobody knows the names of a classifier's outputs.

    Raises:
        UserError: There are more or fewer classes than outputs.
    """
    if not is_classifier(config):
        return
    outputs, found = getattr(config.objective, "classes", None), len(dataset.classes)
    if outputs != found:
        raise UserError(
            f"the classifier has {outputs} outputs without names, and the test images {found} "
            "classes: which is which cannot be told; evaluate on data with the same classes"
        )
    console.warn(f"the names of the {outputs} classes are not known: labels are taken by number")


def _known(subject: Subject, step: int, config: RunConfig) -> dict[str, EvaluationRecord]:
    """Return the records of the protocols that were run with these very values: kind -> record."""
    records = read_records(subject.directory.report)
    found = {}
    for protocol in config.evaluation.protocols:
        overrides = {**subject.source, **differences(config, subject.run, protocol)}
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
