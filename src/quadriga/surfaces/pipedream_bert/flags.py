"""The flags of ``main_with_runtime.py``: pre-training BERT over a pipeline."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from quadriga.errors import UserError
from quadriga.surfaces.pipedream_bert.messages import Parser

EXAMPLES = """examples:
  one process:
    python main_with_runtime.py --module models.bert24.depth=8 --do_train --do_lower_case \\
        --train_path wiki.txt --vocab_path vocab.txt --train_batch_size 16 \\
        --bert_config_path configs/bert_config_bert-large-uncased.json --num_minibatches 200
  PipeDream-2BW over 8 servers of 8 GPUs:
    python -m launch --nnodes 8 --node_rank 0 --nproc_per_node=8 main_with_runtime.py \\
        --master_addr 10.0.0.1 --config_path models/bert24/depth=8/conf.json ...
  data parallel, with a checkpoint after each epoch:
    python -m launch --nproc_per_node=8 main_with_runtime.py --num_train_epochs 30.0 \\
        --config_path models/bert24/depth=8/dp_conf.json --checkpoint_dir checkpoints ...

A step makes one update from U micro-batches per pipeline; U is the number of stages times
--gradient_accumulation_steps. The same command goes on with a run that was interrupted, if it has
a --checkpoint_dir."""


def parser() -> Parser:
    """Return the parser of all flags."""
    made = Parser("main_with_runtime.py", "Pre-train BERT over a pipeline of processes.", EXAMPLES)
    _data_flags(made)
    _model_flags(made)
    _training_flags(made)
    _pipeline_flags(made)
    _process_flags(made)
    _output_flags(made)
    return made


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line and check what can be checked without a file.

    Raises:
        UserError: A flag is unknown, missing, out of range or contradicts another.
    """
    flags = parser().parse_args(arguments)
    _check_numbers(flags)
    _check_choices(flags)
    return flags


def _data_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("data").add_argument
    add(
        "--train_path",
        type=Path,
        required=True,
        help="text: one sentence per line, a blank "
        "line between documents; a file, or a folder of such files",
    )
    add(
        "--partitioned_dataset",
        action="store_true",
        help="--train_path is a folder of parts: "
        "segments fill the whole length, at most 20 words of each sample are masked",
    )
    add("--vocab_path", type=Path, required=True, help="vocab.txt, one WordPiece per line")
    add("--do_lower_case", action="store_true", help="lower-case and strip accents")
    add("--max_seq_length", type=int, default=128, help="tokens of a sample at most (128)")
    add(
        "--on_memory",
        action="store_true",
        help="accepted: the corpus is memory-mapped always, "
        "and the system keeps in memory what it reads",
    )
    add(
        "--data_dir",
        type=Path,
        default=None,
        help="folder in which a relative --train_path and --vocab_path are looked up",
    )


def _model_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("model").add_argument
    add(
        "--module",
        "-m",
        required=True,
        help="models.bertL.depth=K: L layers cut into K modules "
        "of about the same number, then the criterion",
    )
    add(
        "--bert_config_path",
        type=Path,
        required=True,
        help="bert_config.json; its number of layers is replaced by that of --module",
    )
    add(
        "--configurable_model",
        action="store_true",
        help="cut the model into --num_stages modules "
        "of --num_layers_per_stage layers, whatever --module says",
    )
    add("--num_stages", type=int, default=4, help="modules of --configurable_model (4)")
    add("--num_layers_per_stage", type=int, default=1, help="layers of each of them (1)")
    add(
        "--model_dir",
        default="",
        help="refused: --module and --bert_config_path say what the model is",
    )


def _training_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("training").add_argument
    add("--do_train", action="store_true", help="train; it must be given")
    add(
        "--train_batch_size",
        type=int,
        default=32,
        help="samples of a micro-batch on each process (32)",
    )
    add(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="multiplies the micro-batches of an update: there are stages x this many (1)",
    )
    add(
        "--num_minibatches",
        type=int,
        default=None,
        help="train for so many micro-batches of each process, instead of --num_train_epochs",
    )
    add("--num_train_epochs", type=float, default=3.0, help="epochs to train (3.0)")
    add("--learning_rate", type=float, default=3e-5, help="peak learning rate of BertAdam (3e-5)")
    add(
        "--warmup_proportion",
        type=float,
        default=0.1,
        help="share of the updates over which the "
        "learning rate rises; then it falls to 0 along a line (0.1)",
    )
    add("--seed", type=int, default=42, help="every random draw is folded from it (42)")
    add("--fp16", action="store_true", help="compute in 16 bits: bfloat16, which needs no scaling")
    add("--loss_scale", type=float, default=0.0, help="refused unless 0")
    add(
        "--recompute_step",
        action="store_true",
        help="compute the activations of a stage anew "
        "for its backward pass instead of keeping them",
    )
    add(
        "--use_apex",
        action="store_true",
        help="accepted with one stage: torch's own data parallelism is used",
    )


def _pipeline_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("pipeline (PipeDream-2BW unless told otherwise)").add_argument
    add(
        "--config_path",
        type=Path,
        default=None,
        help="conf.json: which module is on which "
        "stage, which stage on which ranks; without it one process does everything",
    )
    add(
        "--gpipe",
        action="store_true",
        help="all forward passes, then all backward passes, with a flush after each update",
    )
    add(
        "--no_input_pipelining",
        action="store_true",
        help="one micro-batch at a time through all stages",
    )
    add("--pipedream", action="store_true", help="refused: the original PipeDream")


def _process_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("processes").add_argument
    add("--rank", type=int, default=None, help="this process, as the launcher says")
    add("--local_rank", "--local-rank", type=int, default=-1, help="its number on this server")
    add(
        "--num_ranks_in_server",
        type=int,
        default=1,
        help="processes on each server, for those that are started by hand; a launcher knows",
    )
    add("--master_addr", default=None, help="address of the server of rank 0")
    add("--master_port", type=int, default=None, help="port on it (MASTER_PORT, or 12345)")
    add("--no_cuda", action="store_true", help="train on the CPU")


def _output_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("output").add_argument
    add(
        "--checkpoint_dir",
        type=_folder,
        default=None,
        help="existing folder: after each epoch e "
        "each stage's checkpoint.STAGE.pth.tar.epoch.E is there; without it nothing is kept",
    )
    add(
        "--load",
        type=_folder,
        default=None,
        help="start from what a --checkpoint_dir holds: "
        "go on with the same run, or take another's weights",
    )
    add(
        "--log_dir",
        type=_folder,
        default=None,
        help="folder of the run: log.txt, metrics.jsonl, "
        "tensorboard, report, the state to go on with (CHECKPOINT_DIR/run, or runs/NAME)",
    )
    add(
        "--verbose_frequency",
        "-v",
        type=int,
        default=0,
        help="log every so many micro-batches "
        "(0: every 20 updates, and with --num_minibatches every one)",
    )
    add(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any value of the engine's config, such as loader.workers=8; may be repeated",
    )


def _folder(text: str) -> Path | None:
    return Path(text) if text else None


def _check_numbers(flags: argparse.Namespace) -> None:
    at_least_one = (
        "max_seq_length",
        "train_batch_size",
        "gradient_accumulation_steps",
        "num_stages",
        "num_layers_per_stage",
        "num_ranks_in_server",
    )
    for name in at_least_one:
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} must be at least 1, but is {getattr(flags, name)}")
    if flags.num_minibatches is not None and flags.num_minibatches < 1:
        raise UserError(f"--num_minibatches must be at least 1, but is {flags.num_minibatches}")
    if not flags.num_train_epochs > 0:
        raise UserError(f"--num_train_epochs must be above 0, but is {flags.num_train_epochs}")
    if not 0 <= flags.warmup_proportion < 1:
        raise UserError(
            f"--warmup_proportion must be at least 0 and below 1, but is {flags.warmup_proportion}"
        )
    if flags.verbose_frequency < 0:
        raise UserError(f"--verbose_frequency must be at least 0, but is {flags.verbose_frequency}")


def _check_choices(flags: argparse.Namespace) -> None:
    if not flags.do_train:
        raise UserError("--do_train must be given: training is all that main_with_runtime.py does")
    chosen = [
        f"--{name}"
        for name in ("pipedream", "gpipe", "no_input_pipelining")
        if flags.__dict__[name]
    ]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude one another; keep one of them")
    if flags.pipedream:
        raise UserError(
            "--pipedream keeps a version of the weights for each micro-batch in flight, and is not "
            "offered; leave it out for PipeDream-2BW, which has no flush either and keeps two"
        )
    if flags.loss_scale != 0:
        raise UserError(
            f"--loss_scale must be 0, but is {flags.loss_scale:g}: --fp16 computes in bfloat16, "
            "whose range needs no scaling; remove it"
        )
    if flags.model_dir:
        raise UserError(
            "--model_dir has no meaning: --module says which model it is and --bert_config_path "
            "of which size; remove it"
        )
