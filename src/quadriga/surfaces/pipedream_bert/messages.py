"""Errors of the documented PipeDream BERT commands, with their flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from quadriga.surfaces import command as documented
from quadriga.surfaces.command import Parser, translate_message

__all__ = ["FLAG_OF", "Parser", "in_flags", "run_command"]

FLAG_OF = {
    "train.batch_size": "--train_batch_size",
    "train.accumulate": "--gradient_accumulation_steps x stages",
    "train.epochs": "--num_train_epochs",
    "train.steps": "--num_minibatches",
    "train.device": "--no_cuda",
    "optim.lr": "--learning_rate",
    "schedule.warmup_steps": "--warmup_proportion",
    "seed": "--seed",
    "data.files": "--train_path",
    "data.vocabulary": "--vocab_path",
    "data.lowercase": "--do_lower_case",
    "views.max_length": "--max_seq_length",
    "model.depth": "the number in --module",
    "executor.conf": "--config_path",
    "executor.schedule": "the schedule (--gpipe, --no_input_pipelining)",
    "warm_start.path": "--load",
    "--work-dir": "--checkpoint_dir",
}
"""Config key or ``quadriga`` option in a message -> flag of these commands."""


def in_flags(sentence: str) -> str:
    """Return a message of the engine with the flags of these commands."""
    return translate_message(sentence, FLAG_OF)


def run_command(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code; errors are printed in one line."""
    documented.run_command(command, in_flags)
