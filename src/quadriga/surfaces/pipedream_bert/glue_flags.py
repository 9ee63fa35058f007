"""The flags of ``compute_glue_scores.py``: fine-tuning BERT on a task of GLUE."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from quadriga.errors import UserError
from quadriga.surfaces.pipedream_bert.messages import Parser

EXAMPLES = """examples:
  a model that main_with_runtime.py has trained, on 8 GPUs:
    python -u -m torch.distributed.launch --nproc_per_node=8 compute_glue_scores.py \\
        --data_dir glue --task_name MNLI --do_train --do_eval -m models.bert24.depth=8 \\
        --bert_config_path configs/bert_config_bert-large-uncased.json \\
        --checkpoint_path checkpoints --epoch 5 --num_stages 1
  a model in Hugging Face's layout, in one process:
    python compute_glue_scores.py --data_dir glue/RTE --task_name RTE --do_train --do_eval \\
        --bert_config_path bert/config.json --bert_model bert --output_dir runs/rte
  the scores of what was fine-tuned before:
    python compute_glue_scores.py --data_dir glue/RTE --task_name RTE --do_eval \\
        --bert_config_path bert/config.json --output_dir runs/rte"""


def parser() -> Parser:
    """Return the parser of all flags."""
    made = Parser(
        "compute_glue_scores.py", "Fine-tune a pre-trained BERT on a GLUE task.", EXAMPLES
    )
    _task_flags(made)
    _model_flags(made)
    _training_flags(made)
    _refused_flags(made)
    return made


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line and check what can be checked without a file.

    Raises:
        UserError: A flag is unknown, missing, out of range or contradicts another.
    """
    flags = parser().parse_args(arguments)
    _check(flags)
    return flags


def _task_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("task").add_argument
    add("--data_dir", type=Path, required=True, help="folder of the task's .tsv files, or of tasks")
    add(
        "--task_name",
        required=True,
        help="cola, mnli, mnli-mm, mrpc, sst-2, sts-b, qqp, qnli, rte or wnli, in any case",
    )
    add("--do_train", action="store_true", help="fine-tune")
    add(
        "--do_eval",
        action="store_true",
        help="print the scores after each epoch; without "
        "--do_train those of the run in --output_dir",
    )
    add("--max_seq_length", type=int, default=128, help="tokens of a sample at most (128)")
    add(
        "--do_lower_case",
        action="store_true",
        help="lower-case and strip accents; known already "
        "where the vocabulary lies beside the checkpoints",
    )
    add(
        "--vocab_path",
        type=Path,
        default=None,
        help="vocab.txt; by default the one beside the checkpoints or in --bert_model",
    )


def _model_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("model").add_argument
    add("--bert_config_path", type=Path, required=True, help="bert_config.json")
    add(
        "--module",
        "-m",
        default=None,
        help="models.bertL.depth=K: the model has L layers; by default those of the config",
    )
    add(
        "--checkpoint_path",
        type=Path,
        default=None,
        help="folder with the files of the stages, checkpoint.STAGE.pth.tar.epoch.EPOCH",
    )
    add("--epoch", type=int, default=-1, help="which epoch, from 0 (-1: the newest)")
    add(
        "--num_stages",
        type=int,
        default=-1,
        help="stages that pre-training had (-1: as many as there are files)",
    )
    add(
        "--bert_model",
        default="bert-large-uncased",
        help="without --checkpoint_path: a folder in Hugging Face's layout; nothing is downloaded",
    )
    add("--random", action="store_true", help="start from random values, as a baseline")


def _training_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("training").add_argument
    add(
        "--train_batch_size",
        type=int,
        default=32,
        help="samples of a micro-batch on each process (32)",
    )
    add("--eval_batch_size", type=int, default=8, help="samples evaluated at once (8)")
    add(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="micro-batches of an update on each process (1)",
    )
    add("--num_train_epochs", type=float, default=3.0, help="epochs to train (3.0)")
    add("--learning_rate", type=float, default=5e-5, help="peak learning rate of BertAdam (5e-5)")
    add(
        "--final_learning_rate",
        "--final_lr",
        type=float,
        default=0.0,
        help="learning rate that the line after the warm-up falls to (0)",
    )
    add(
        "--warmup_proportion",
        type=float,
        default=0.1,
        help="share of the updates over which the learning rate rises (0.1)",
    )
    add("--seed", type=int, default=42, help="every random draw is folded from it (42)")
    add("--fp16", action="store_true", help="compute in 16 bits: bfloat16, which needs no scaling")
    add("--loss_scale", type=float, default=0.0, help="refused unless 0")
    add("--no_cuda", action="store_true", help="train on the CPU")
    add("--local_rank", "--local-rank", type=int, default=-1, help="as the launcher says")
    add(
        "--output_dir",
        type=Path,
        default=None,
        help="folder of the run, which then keeps its "
        "weights and goes on with the same command; runs/NAME without them otherwise",
    )
    add(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any value of the engine's config; may be repeated",
    )


def _refused_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("refused").add_argument
    add("--lr_decay_rate", type=float, default=None, help="the learning rate falls along a line")
    add("--focal", action="store_true", help="the loss is the cross-entropy")
    add("--gamma", type=float, default=None, help="of --focal")
    add("--files_location", default=None, help="--data_dir is where the files are")


def _check(flags: argparse.Namespace) -> None:
    for name in (
        "max_seq_length",
        "train_batch_size",
        "eval_batch_size",
        "gradient_accumulation_steps",
    ):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} must be at least 1, but is {getattr(flags, name)}")
    if not flags.num_train_epochs > 0:
        raise UserError(f"--num_train_epochs must be above 0, but is {flags.num_train_epochs}")
    if not 0 <= flags.warmup_proportion < 1:
        raise UserError(
            f"--warmup_proportion must be at least 0 and below 1, but is {flags.warmup_proportion}"
        )
    if not 0 <= flags.final_learning_rate <= flags.learning_rate:
        raise UserError(
            f"--final_learning_rate must be from 0 to --learning_rate ({flags.learning_rate:g}), "
            f"but is {flags.final_learning_rate:g}"
        )
    if not (flags.do_train or flags.do_eval):
        raise UserError("--do_train or --do_eval must be given, or both")
    if not flags.do_train and flags.output_dir is None:
        raise UserError(
            "--output_dir must name the run to evaluate when --do_eval is given without --do_train"
            ": a pre-trained model has no classifier yet"
        )
    if flags.random and flags.checkpoint_path is not None:
        raise UserError("--random and --checkpoint_path exclude one another; keep one of them")
    _refuse(flags)


def _refuse(flags: argparse.Namespace) -> None:
    reasons = {
        "loss_scale": "--fp16 computes in bfloat16, whose range needs no scaling",
        "lr_decay_rate": "the learning rate falls along a line; --final_learning_rate says to what",
        "focal": "the loss is the cross-entropy, with which GLUE's scores are compared",
        "gamma": "it belongs to --focal, which is not offered",
        "files_location": "--data_dir says where the files are",
    }
    for name, reason in reasons.items():
        if getattr(flags, name):
            raise UserError(f"--{name} is not offered: {reason}; remove it")
