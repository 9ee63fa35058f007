"""The values of a run's config from the flags of ``main_with_runtime.py``: pure functions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quadriga.errors import UserError
from quadriga.models.bert import BertConfig
from quadriga.pipeline.topology import read_conf
from quadriga.surfaces.pipedream_bert.cut import Cut, schedule_of


def micro_batches(flags: argparse.Namespace, cut: Cut) -> int:
    """Return U, the micro-batches per update of one pipeline."""
    micro: int = cut.stages * flags.gradient_accumulation_steps
    return micro


def config_tree(flags: argparse.Namespace, cut: Cut) -> dict[str, Any]:
    """Return the values of the run's `RunConfig`, except those that need an epoch's length."""
    updates = micro_batches(flags, cut)
    schedule = schedule_of(flags, cut)
    executor: dict[str, Any] = {"kind": "data_parallel"}
    if schedule is not None:
        conf = None if flags.config_path is None else str(flags.config_path)
        executor = {"kind": "pipeline", "schedule": schedule, "stages": cut.stages, "conf": conf}
    length: dict[str, Any] = {"epochs": flags.num_train_epochs}
    if flags.num_minibatches is not None:
        length = {"steps": max(1, flags.num_minibatches // updates)}
    bert = BertConfig.from_bert_config(flags.bert_config_path).override({"depth": cut.layers})
    return {
        "name": f"bert{cut.layers}_{schedule or 'dp'}",
        "seed": flags.seed,
        "model": bert.as_dict(),
        "objective": {"kind": "masked_lm"},
        "data": _data(flags),
        "views": _views(flags),
        "optim": {
            "kind": "bert_adam",
            "lr": flags.learning_rate,
            "lr_batch": flags.train_batch_size * updates * cut.replicas,
            "lr_scaling": "none",
            "weight_decay": 0.01,
            "clip_norm": 1.0,
        },
        "schedule": {"kind": "linear", "start_factor": 0.0},
        "train": {
            **length,
            "batch_size": flags.train_batch_size * updates * cut.replicas,
            "accumulate": updates,
            "device": "cpu" if flags.no_cuda else "auto",
            "precision": "bfloat16" if flags.fp16 else "float32",
            "recompute": "full" if flags.recompute_step else "none",
        },
        "executor": executor,
        "log": {"every_steps": _every_steps(flags, updates)},
    }


def with_length(
    tree: dict[str, Any], flags: argparse.Namespace, cut: Cut, samples: int
) -> dict[str, Any]:
    """Return the tree with its length, warm-up and checkpoints in updates.

    An epoch is ``samples // batch`` updates. The learning rate depends on the updates too, not on
    the number of stages.

    Args:
        tree: The result of `config_tree`.
        flags: The command line.
        cut: The stages.
        samples: Samples of the corpus.

    Raises:
        UserError: The corpus has too few samples for one update.
    """
    every, total = length_of(tree, flags, cut, samples)
    train = {name: value for name, value in tree["train"].items() if name != "epochs"}
    train["steps"] = total
    warmup = round(flags.warmup_proportion * total)
    schedule = {**tree["schedule"], "warmup_steps": warmup}
    saving = {"every_steps": min(every, total)}
    return {**tree, "train": train, "schedule": schedule, "checkpoint": saving}


def length_of(
    tree: dict[str, Any], flags: argparse.Namespace, cut: Cut, samples: int
) -> tuple[int, int]:
    """Return the updates of an epoch and of the run; the arguments are those of `with_length`."""
    train = tree["train"]
    epochs, batch = train.get("epochs"), train["batch_size"]
    if epochs is None:
        return train["steps"], train["steps"]
    if samples < batch:
        raise UserError(
            f"--train_path must have at least the {batch} samples of one update "
            f"(--train_batch_size {flags.train_batch_size} x {train['accumulate']} micro-batches x "
            f"{cut.replicas} pipelines), but has {samples}; lower --train_batch_size"
        )
    every = samples // batch
    return every, max(1, round(epochs * every))


def _every_steps(flags: argparse.Namespace, updates: int) -> int:
    asked: int = flags.verbose_frequency
    if asked:
        return max(1, round(asked / updates))
    return 1 if flags.num_minibatches is not None else 20


def _under(folder: Path | None, path: Path) -> Path:
    return path if folder is None or path.is_absolute() else folder / path


def _data(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the data's config: a corpus in a file or a folder of files, and the vocabulary."""
    text, vocabulary = (_under(flags.data_dir, p) for p in (flags.train_path, flags.vocab_path))
    if not text.exists():
        raise UserError(f"--train_path: {text} does not exist")
    if not vocabulary.is_file():
        raise UserError(f"--vocab_path: {vocabulary} is no file; it must be a vocab.txt")
    if flags.partitioned_dataset and not text.is_dir():
        raise UserError(
            f"--train_path must be a folder with --partitioned_dataset, but {text} is a file"
        )
    return {
        "kind": "text_corpus",
        "root": str(text),
        "format": "sentences",
        "vocabulary": str(vocabulary),
        "lowercase": flags.do_lower_case,
        "test_fraction": 0.0,
    }


def _views(flags: argparse.Namespace) -> dict[str, Any]:
    shared = {"kind": "sentence_pairs", "max_length": flags.max_seq_length}
    if flags.partitioned_dataset:
        return {**shared, "pairing": "segments", "max_predictions": 20}
    return {**shared, "pairing": "adjacent"}


def notes(flags: argparse.Namespace, cut: Cut) -> list[str]:
    """Return a line for each flag or file whose effect differs from what it says.

    Raises:
        UserError: --use_apex is given with several stages.
    """
    lines = []
    updates = micro_batches(flags, cut)
    if flags.use_apex:
        if cut.stages > 1:
            raise UserError(
                f"--use_apex must not be given with several stages ({cut.stages}): the pipeline "
                "reduces gradients by itself; remove it"
            )
        lines.append("--use_apex: torch's own data parallelism is used, apex is not needed")
    if flags.fp16:
        lines.append("--fp16: computing in bfloat16, which needs no loss scaling")
    if flags.on_memory:
        lines.append("--on_memory: the corpus is memory-mapped, and stays in memory as it is read")
    if flags.num_minibatches is not None and flags.num_minibatches % updates:
        made = max(1, flags.num_minibatches // updates)
        lines.append(
            f"--num_minibatches {flags.num_minibatches} is no multiple of the {updates} "
            f"micro-batches of an update: {made} updates of {updates} are made"
        )
    if flags.config_path is not None and "stage_to_depth_map" in read_conf(flags.config_path):
        lines.append(
            "stage_to_depth_map is not needed: the schedule knows how far a stage is ahead"
        )
    lines.append("gradients are clipped to a global norm of 1.0, not tensor by tensor")
    return lines
