"""``main_with_runtime.py``: the documented command for pre-training BERT over a pipeline."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quadriga.config.provenance import COMMAND_LINE, Resolved, read_overrides
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import read_launch
from quadriga.distributed.process_group import process_group
from quadriga.engine.checkpoint.store import InvalidCheckpoint, list_checkpoints
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.resume import Request
from quadriga.engine.run_config import RunConfig, complete
from quadriga.engine.session import run
from quadriga.errors import UserError
from quadriga.files import write_text
from quadriga.report.run import write_report
from quadriga.surfaces.pipedream_bert.cut import Cut, process_environ, read_cut
from quadriga.surfaces.pipedream_bert.flags import read_flags
from quadriga.surfaces.pipedream_bert.load import Start, find_start, merged_file
from quadriga.surfaces.pipedream_bert.messages import run_command
from quadriga.surfaces.pipedream_bert.stage_files import StageFiles, write_missing
from quadriga.surfaces.pipedream_bert.to_config import (
    config_tree,
    length_of,
    notes,
    with_length,
)


@dataclass(frozen=True)
class Pretraining:
    """A parsed command line."""

    flags: argparse.Namespace
    cut: Cut
    resolved: Resolved[RunConfig]
    notes: tuple[str, ...]
    stage_files: StageFiles | None
    """The files to write into ``--checkpoint_dir``; None without one."""


def read_command(arguments: Sequence[str], environ: Mapping[str, str]) -> Pretraining:
    """Read the command line, the files that it names, and the number of samples.

    Raises:
        UserError: The command line or a file is invalid; raised on every rank alike.
    """
    flags = read_flags(arguments)
    launch = read_launch(environ)
    by_hand = launch.launcher == "none" and flags.rank is not None
    cut = read_cut(flags, None if by_hand else launch.world_size)
    said = notes(flags, cut)
    if flags.checkpoint_dir is not None and not flags.checkpoint_dir.is_dir():
        raise UserError(
            f"--checkpoint_dir must be an existing folder, but {flags.checkpoint_dir} is none; "
            "make it first"
        )
    tree = config_tree(flags, cut)
    words = read_overrides(flags.override)
    samples = 0
    if flags.num_minibatches is None:
        data = RunConfig.from_dict(tree).override(_of_data(words), COMMAND_LINE).data
        samples = len(data.build("train"))
    config = RunConfig.from_dict(with_length(tree, flags, cut, samples))
    resolved = Resolved.of(config, COMMAND_LINE)
    if words:
        resolved = resolved.override(complete(words, resolved.config), COMMAND_LINE)
    stage_files = None
    if flags.checkpoint_dir is not None:
        length = length_of(tree, flags, cut, samples)
        blocks = tuple(map(tuple, cut.blocks_by_stage()))
        stage_files = StageFiles(flags.checkpoint_dir, *length, blocks)
    return Pretraining(flags, cut, resolved, tuple(said), stage_files)


def _of_data(words: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in words.items() if key.startswith("data.")}


def pretrain(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Train; return the exit code.

    Raises:
        UserError: The command line, a file or the data is invalid.
    """
    try:
        command = read_command(arguments, environ)
        os.environ.update(process_environ(command.flags, environ, command.cut.ranks))
    except UserError as error:
        error.on_every_rank = True
        raise
    flags, config = command.flags, command.resolved.config
    with (
        Preemption() as preemption,
        process_group(config.train.device) as env,
        Console(env.is_main) as console,
    ):
        for note in command.notes:
            console.say(note)
        work_dir = Path(from_main(lambda: str(_work_dir(flags, config)), env))
        start: Start = from_main(lambda: _prepare(command, work_dir, console), env)
        resolved = command.resolved
        if start.warm_start is not None:
            resolved = resolved.override({"warm_start.path": start.warm_start}, COMMAND_LINE)
        going_on = bool(list_checkpoints(RunDirectory(work_dir).checkpoints))
        request = Request(work_dir, resume=going_on, resume_from=start.resume_from)
        files = command.stage_files
        on_saved = None if files is None else files.on_saved
        run(resolved, request, env, console, preemption, on_saved=on_saved)
        if env.is_main:
            if RunDirectory(work_dir).config.is_file():  # missing after --load of a finished run
                console.say(f"report: {write_report(work_dir)}")
            if flags.checkpoint_dir is None and flags.log_dir is None:
                shutil.rmtree(RunDirectory(work_dir).checkpoints, ignore_errors=True)
                merged_file(work_dir).unlink(missing_ok=True)
                console.say("nothing is kept of the weights: --checkpoint_dir is not given")
    return 0


def _work_dir(flags: argparse.Namespace, config: RunConfig) -> Path:
    """Return the run's directory; without --log_dir or --checkpoint_dir, a new one in runs/."""
    if flags.log_dir is not None:
        return Path(flags.log_dir)
    if flags.checkpoint_dir is not None:
        return Path(flags.checkpoint_dir) / "run"
    number = 1
    while (found := Path("runs") / f"{config.name}.{number}").exists():
        number += 1
    return found


def _prepare(command: Pretraining, work_dir: Path, console: Console) -> Start:
    """Write the vocabulary and missing stage files; return where the run starts."""
    flags, config = command.flags, command.resolved.config
    folder = flags.checkpoint_dir
    if folder is not None:
        vocabulary = Path(config.as_dict()["data"]["vocabulary"])
        _remember_vocabulary(folder, vocabulary, flags.do_lower_case)
        assert command.stage_files is not None
        try:
            for path in write_missing(command.stage_files, RunDirectory(work_dir).checkpoints):
                console.say(f"written after an interruption: {path}")
        except (OSError, InvalidCheckpoint, UserError) as error:
            console.warn(f"the files of the stages are not complete: {error}")
    if list_checkpoints(RunDirectory(work_dir).checkpoints):
        return Start(None, _warm_start_of(work_dir))
    return find_start(flags.load, work_dir, command.resolved.config, console)


def _warm_start_of(work_dir: Path) -> str | None:
    """Return the path of the initial weights of the run in a work directory."""
    return RunDirectory(work_dir).read_config().config.warm_start.path


def _remember_vocabulary(folder: Path, vocabulary: Path, lowercase: bool) -> None:
    """Write the vocabulary beside the stage files, named as in Hugging Face's folders.

    Raises:
        UserError: The folder has another vocabulary, or cannot be written.
    """
    beside = folder / "vocab.txt"
    content = vocabulary.read_text(encoding="utf-8")
    if beside.is_file() and beside.read_text(encoding="utf-8") != content:
        raise UserError(
            f"--checkpoint_dir {folder} holds checkpoints of another vocabulary than --vocab_path "
            f"{vocabulary}; choose another folder"
        )
    settings = json.dumps({"do_lower_case": lowercase}) + "\n"
    try:
        write_text(beside, content)
        write_text(folder / "tokenizer_config.json", settings)
    except OSError as error:
        raise UserError(f"--checkpoint_dir {folder} cannot be written: {error.strerror}") from error


def main() -> None:
    """Run the command line."""
    run_command(lambda: pretrain(sys.argv[1:], os.environ))
