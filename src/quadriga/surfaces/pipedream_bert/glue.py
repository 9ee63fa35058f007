"""``compute_glue_scores.py``: the documented command for fine-tuning BERT on a GLUE task."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from quadriga import api
from quadriga.config.provenance import COMMAND_LINE, Resolved, read_overrides
from quadriga.data.text.glue.tasks import TASKS, task_called
from quadriga.distributed.collectives import from_main
from quadriga.distributed.environment import DistEnv, read_launch
from quadriga.distributed.process_group import process_group
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import RESULTS, read_results
from quadriga.engine.resume import Request
from quadriga.engine.run_config import RunConfig, complete
from quadriga.engine.session import run
from quadriga.errors import UserError
from quadriga.models.bert import BertConfig
from quadriga.surfaces.pipedream_bert.cut import module_sizes
from quadriga.surfaces.pipedream_bert.glue_flags import read_flags
from quadriga.surfaces.pipedream_bert.load import merged_file
from quadriga.surfaces.pipedream_bert.messages import run_command
from quadriga.surfaces.pipedream_bert.stage_files import choose_files, read_stages
from quadriga.weights.files import read_tensors, write_tensors
from quadriga.weights.layouts.pipedream import assemble, own_names

HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")


def config_tree(flags: argparse.Namespace, processes: int) -> dict[str, Any]:
    """Return the values of the run's `RunConfig`: a pure function of the flags and their files.

    Args:
        flags: The command line.
        processes: Number of processes.

    Raises:
        UserError: A file is missing, or a name is unknown.
    """
    task = TASKS[task_called(flags.task_name).name]
    if flags.checkpoint_path is None and not flags.random:
        _hugging_face_file(flags)
    vocabulary, remembered = _vocabulary(flags)
    bert = BertConfig.from_bert_config(flags.bert_config_path)
    if flags.module is not None:
        bert = bert.override({"depth": module_sizes(flags.module)[0]})
    batch = flags.train_batch_size * flags.gradient_accumulation_steps * processes
    protocols = [{"kind": "glue", "batch_size": flags.eval_batch_size}] if flags.do_eval else []
    return {
        "name": f"glue_{task.name}",
        "seed": flags.seed,
        "model": bert.as_dict(),
        "objective": {
            "kind": "sequence_classification",
            "outputs": task.outputs,
            "regression": task.regression,
        },
        "data": {
            "kind": "glue",
            "root": str(flags.data_dir),
            "task": task.name,
            "vocabulary": str(vocabulary),
            "lowercase": flags.do_lower_case or remembered,
        },
        "views": {"kind": "text_pairs", "max_length": flags.max_seq_length},
        "optim": {
            "kind": "bert_adam",
            "lr": flags.learning_rate,
            "lr_batch": batch,
            "lr_scaling": "none",
            "weight_decay": 0.01,
            "clip_norm": 1.0,
        },
        "schedule": {
            "kind": "linear",
            "warmup_epochs": flags.warmup_proportion * flags.num_train_epochs,
            "start_factor": 0.0,
            "final_factor": flags.final_learning_rate / (flags.learning_rate or 1.0),
        },
        "train": {
            "epochs": flags.num_train_epochs,
            "batch_size": batch,
            "accumulate": flags.gradient_accumulation_steps,
            "device": "cpu" if flags.no_cuda else "auto",
            "precision": "bfloat16" if flags.fp16 else "float32",
        },
        "checkpoint": {"every_epochs": 1.0, "keep": 1},
        "evaluation": {"protocols": protocols, "every_epochs": 1.0 if protocols else None},
    }


def _vocabulary(flags: argparse.Namespace) -> tuple[Path, bool]:
    """Return the vocab.txt, and whether the tokenizer_config.json beside it sets lower case."""
    folders = [flags.checkpoint_path, Path(flags.bert_model)]
    beside = [folder / "vocab.txt" for folder in folders if folder is not None]
    found = [flags.vocab_path] if flags.vocab_path is not None else beside
    for path in found:
        if path.is_file():
            return path, _lowercases(path.parent / "tokenizer_config.json")
    raise UserError(
        "--vocab_path must name the vocab.txt that the model was pre-trained with, but "
        f"{' and '.join(map(str, found))} {'is' if len(found) == 1 else 'are'} not there"
    )


def _lowercases(settings: Path) -> bool:
    try:
        return bool(json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case"))
    except (OSError, ValueError, AttributeError):
        return False


def read_pretrained(flags: argparse.Namespace, layers: int) -> dict[str, Tensor]:
    """Read the encoder and the pooler under this project's names, without pre-training heads.

    Args:
        flags: The command line.
        layers: Required number of layers.

    Raises:
        UserError: The files are missing, cannot be read, or have another number of layers.
    """
    if flags.checkpoint_path is not None:
        files = choose_files(flags.checkpoint_path, flags.epoch, flags.num_stages)
        source, whole = str(flags.checkpoint_path), read_stages(files)
    else:
        source, path = flags.bert_model, _hugging_face_file(flags)
        kept = {
            name: tensor
            for name, tensor in read_tensors(path).items()
            if not name.startswith("classifier.") and not name.endswith("position_ids")
        }
        whole = assemble([kept], source)
    tensors = {
        name: tensor
        for name, tensor in own_names(whole).items()
        if name.startswith(("encoder.", "pooler."))
    }
    found = len({name.split(".")[2] for name in tensors if name.startswith("encoder.blocks.")})
    if found != layers:
        where = "--module" if flags.module is not None else "--bert_config_path"
        raise UserError(
            f"{where} must describe the model of {source}, which has {found} layers, but describes "
            f"{layers}"
        )
    return tensors


def _hugging_face_file(flags: argparse.Namespace) -> Path:
    folder = Path(flags.bert_model)
    for name in HUGGING_FACE_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"--checkpoint_path must be given, or --bert_model must be a folder with "
        f"{' or '.join(HUGGING_FACE_FILES)}, but {folder} is none: nothing is downloaded"
    )


def compute(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Fine-tune, evaluate, or both; return the exit code.

    Raises:
        UserError: The command line, a file or the data is invalid.
    """
    try:
        flags = read_flags(arguments)
        if not flags.do_train:
            return _evaluate(flags, environ)
        tree = config_tree(flags, read_launch(environ).world_size)
        resolved = Resolved.of(RunConfig.from_dict(tree), COMMAND_LINE)
        words = read_overrides(flags.override)
        if words:
            resolved = resolved.override(complete(words, resolved.config), COMMAND_LINE)
    except UserError as error:
        error.on_every_rank = True
        raise
    with (
        Preemption() as preemption,
        process_group(resolved.config.train.device) as env,
        Console(env.is_main) as console,
    ):
        work_dir = Path(from_main(lambda: str(_work_dir(flags, resolved.config)), env))
        goes_on = from_main(lambda: _prepare(flags, work_dir, resolved.config), env)
        if not flags.random:
            merged = str(merged_file(work_dir))
            resolved = resolved.override({"warm_start.path": merged}, COMMAND_LINE)
        run(resolved, Request(work_dir, resume=goes_on), env, console, preemption)
        _tell(flags, work_dir, env, console)
    return 0


def _work_dir(flags: argparse.Namespace, config: RunConfig) -> Path:
    if flags.output_dir is not None:
        return Path(flags.output_dir)
    number = 1
    while (found := Path("runs") / f"{config.name}.{number}").exists():
        number += 1
    return found


def _prepare(flags: argparse.Namespace, work_dir: Path, config: RunConfig) -> bool:
    """Write the initial weights into one file; return whether the run already has a checkpoint."""
    if list_checkpoints(RunDirectory(work_dir).checkpoints):
        return True
    if not flags.random:
        layers = int(config.as_dict()["model"]["depth"])
        write_tensors(read_pretrained(flags, layers), merged_file(work_dir))
    return False


def _evaluate(flags: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Evaluate the fine-tuned run in ``--output_dir``."""
    words = ("glue", f"glue.batch_size={flags.eval_batch_size}")
    api.evaluate(flags.output_dir, words, "cpu" if flags.no_cuda else "auto")
    if read_launch(environ).rank == 0:
        print("\n".join(_scores(RunDirectory(flags.output_dir))), flush=True)
    return 0


def _scores(directory: RunDirectory) -> list[str]:
    """Return a line for each score of the last evaluation."""
    results = read_results(directory.report / RESULTS)["results"]
    found: dict[str, float] = next((r["numbers"] for r in results if r["protocol"] == "glue"), {})
    return [f"{name} = {found[name]:.2f}" for name in sorted(found)]


def _tell(flags: argparse.Namespace, work_dir: Path, env: DistEnv, console: Console) -> None:
    """Print the scores; without ``--output_dir``, delete the weights."""
    if not env.is_main:
        return
    directory = RunDirectory(work_dir)
    if flags.do_eval:
        for line in _scores(directory):
            console.say(line)
    if flags.output_dir is None:
        shutil.rmtree(directory.checkpoints, ignore_errors=True)
        merged_file(work_dir).unlink(missing_ok=True)


def main() -> None:
    """Run the command line."""
    run_command(lambda: compute(sys.argv[1:], os.environ))
