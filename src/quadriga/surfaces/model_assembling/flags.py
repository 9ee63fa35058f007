"""The flags of ``main.py``: training a vision transformer whole or module by module."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from quadriga.surfaces.command import Parser
from quadriga.surfaces.model_assembling.checks import check_flags

EXAMPLES = """examples:
  the meta model, one block per module:
    torchrun --nproc_per_node=8 main.py --phase PT --model vit_base_patch16_224 \\
        --divided_depths 1 1 1 1 --batch_size 256 --epochs 300 --drop-path 0 \\
        --output_dir ./log_dir/PT_base
  module 1 of 4, three blocks among the frozen meta model:
    torchrun --nproc_per_node=8 main.py --phase MT --model vit_base_patch16_224 --idx 1 \\
        --divided_depths 1 3 1 1 --meta_model ./log_dir/PT_base/finished_checkpoint.pth \\
        --batch_size 128 --update_freq 2 --epochs 100 --output_dir ./log_dir/MT_base_1
  assemble and fine-tune:
    torchrun --nproc_per_node=8 main.py --phase FT --model vit_base_patch16_224 \\
        --incubation_models ./log_dir/MT_base_*/finished_checkpoint.pth \\
        --divided_depths 3 3 3 3 --batch_size 64 --update_freq 4 --epochs 100 \\
        --warmup-epochs 0 --clip-grad 1 --output_dir ./log_dir/FT_base
  evaluate:
    python main.py --eval --finetune ./pretrained/vit_base.pth --divided_depths 3 3 3 3 \\
        --model vit_base_patch16_224 --batch_size 1024

Every flag may be written with dashes or with underscores. The same command goes on with a run
that was interrupted, and does nothing where the phase is finished."""


class _Parser(Parser):
    """A parser that accepts dashes for underscores in the names of flags."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse `args` with each flag spelt with underscores."""
        return super().parse_known_args([_spelling(word) for word in args or ()], namespace)


def _spelling(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def parser() -> Parser:
    """Return the parser of all flags."""
    made = _Parser("main.py", "Train a vision transformer whole, or module by module.", EXAMPLES)
    _phase_flags(made)
    _model_flags(made)
    _data_flags(made)
    _augmentation_flags(made)
    _optimizer_flags(made)
    _schedule_flags(made)
    _process_flags(made)
    _output_flags(made)
    _dead_flags(made)
    return made


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line and check what can be checked without a file.

    Raises:
        UserError: A flag is unknown, missing, out of range, dead, or contradicts another.
    """
    flags = parser().parse_args(list(arguments))
    check_flags(flags)
    return flags


def _phase_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("phases").add_argument
    add(
        "--phase",
        choices=("PT", "MT", "FT", "E2E"),
        default="E2E",
        help="PT: the meta model; MT: one module among the frozen meta model; FT: assemble and "
        "fine-tune; E2E: the whole model from the start (E2E)",
    )
    add(
        "--divided_depths",
        type=int,
        nargs="+",
        default=None,
        metavar="BLOCKS",
        help="blocks of each module of the model that is built; in MT those of the hybrid, the "
        "target's at --idx and the meta model's elsewhere",
    )
    add("--idx", type=int, default=None, help="MT: which module is trained, from 0")
    add(
        "--meta_model",
        default="",
        help="MT: the trained meta model: a file, an --output_dir, or a run",
    )
    add(
        "--incubation_models",
        nargs="+",
        default=[],
        metavar="FILE",
        help="FT: the trained modules in any order: files, --output_dirs, or runs",
    )
    add(
        "--target_depths",
        type=int,
        nargs="+",
        default=None,
        metavar="BLOCKS",
        help="MT: blocks of each module of the target, which decide drop-path rates (all as deep "
        "as the one that is trained)",
    )
    add(
        "--initialise",
        choices=("random", "inherit", "function_preserving"),
        default="random",
        help="MT: how the module starts: as published; with the meta model's embedding or head; "
        "or so that the hybrid is the meta model at first (random)",
    )
    add(
        "--imitation",
        type=float,
        default=0.0,
        help="MT: weight of the difference to what the meta model's stage returns (0)",
    )


def _model_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("model").add_argument
    add(
        "--model",
        default="deit_base_patch16_224",
        help="vit_{small,base,large}_patch16_224, vit_{base,large}_patch{16,32}_384, "
        "vit_huge_patch14_{224,392}, vit_huge_patch32_384, deit_{tiny,small,base}_patch16_224, "
        "deit_base_patch16_384; its depth is the sum of --divided_depths",
    )
    add("--input_size", type=int, default=None, help="side of the images (that in the name)")
    add("--drop", type=float, default=0.0, help="dropout (0)")
    add("--drop_path", type=float, default=0.1, help="stochastic depth of the last block (0.1)")
    add(
        "--finetune",
        default="",
        help="weights to start from or to evaluate: a file, an --output_dir, or a run; positions "
        "are resampled to --input-size",
    )


def _data_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("data").add_argument
    add("--data_path", type=Path, default=Path("data"), help="folder of the data (data)")
    add(
        "--data_set",
        choices=("IMNET", "CIFAR", "INAT", "INAT19"),
        default="IMNET",
        help="IMNET: train/CLASS and val/CLASS, as many classes as there are; CIFAR: CIFAR-100's "
        "files; INAT, INAT19: iNaturalist 2018 and 2019 (IMNET)",
    )
    add(
        "--inat_category",
        choices="name kingdom phylum class order supercategory family genus".split(),
        default="name",
        help="which level of iNaturalist is the label (name)",
    )


def _augmentation_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("augmentation").add_argument
    add("--color_jitter", type=float, default=0.4, help="used when --aa is empty (0.4)")
    add("--aa", default="rand-m9-mstd0.5-inc1", help="RandAugment; '' for none")
    add("--smoothing", type=float, default=0.1, help="label smoothing (0.1)")
    add(
        "--train_interpolation",
        choices=("random", "bilinear", "bicubic"),
        default="bicubic",
        help="filter of the random resized crop (bicubic)",
    )
    add("--repeated_aug", action="store_true", dest="repeated_aug", help="three views (default)")
    add("--no_repeated_aug", action="store_false", dest="repeated_aug", help="one view")
    made.set_defaults(repeated_aug=True)
    add("--reprob", type=float, default=0.25, help="probability of random erasing (0.25)")
    add("--remode", choices=("pixel", "rand", "const"), default="pixel", help="its fill (pixel)")
    add("--recount", type=int, default=1, help="its boxes (1)")
    add("--mixup", type=float, default=0.8, help="alpha of mixup, 0 for none (0.8)")
    add("--cutmix", type=float, default=1.0, help="alpha of cutmix, 0 for none (1.0)")
    add(
        "--cutmix_minmax",
        type=float,
        nargs=2,
        default=None,
        help="least and greatest side of the box instead of an alpha",
    )
    add("--mixup_prob", type=float, default=1.0, help="probability of mixing (1.0)")
    add("--mixup_switch_prob", type=float, default=0.5, help="share of cutmix of both (0.5)")
    add(
        "--mixup_mode",
        choices=("batch", "pair", "elem"),
        default="batch",
        help="what shares one draw (batch)",
    )


def _optimizer_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("optimizer").add_argument
    add("--batch_size", type=int, default=64, help="samples of a micro-batch of a process (64)")
    add("--update_freq", type=int, default=1, help="micro-batches of an update (1)")
    add("--epochs", type=int, default=300, help="epochs (300)")
    add("--use_amp", type=int, default=0, help="1: compute in bfloat16, which needs no scaler")
    add(
        "--opt",
        default="adamw",
        help="adamw, adam, nadam, radam, sgd, nesterov, momentum, rmsprop, adadelta, adafactor, "
        "lamb (adamw)",
    )
    add("--opt_eps", type=float, default=None, help="epsilon of the optimizer (1e-8)")
    add("--opt_betas", type=float, nargs=2, default=None, help="decay of the moments")
    add("--clip_grad", type=float, default=None, help="greatest norm of the gradient (no limit)")
    add("--momentum", type=float, default=0.9, help="of sgd, nesterov, momentum, rmsprop (0.9)")
    add("--weight_decay", type=float, default=0.05, help="not of norms, biases, tokens (0.05)")
    add("--lr", type=float, default=5e-4, help="peak learning rate of 512 samples (5e-4)")


def _schedule_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("schedule, step by step").add_argument
    add("--sched", default="cosine", help="cosine, tanh or step (cosine)")
    add("--warmup_lr", type=float, default=1e-6, help="where the warm-up begins (1e-6)")
    add("--min_lr", type=float, default=1e-5, help="where cosine and tanh end (1e-5)")
    add("--warmup_epochs", type=int, default=20, help="length of the warm-up (20)")
    add("--decay_epochs", type=float, default=30, help="step: epochs between two falls (30)")
    add("--decay_rate", "--dr", type=float, default=0.1, help="step: factor of a fall (0.1)")


def _process_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("processes").add_argument
    add("--device", default="auto", help="auto, cpu or cuda (auto: cuda where there is one)")
    add("--seed", type=int, default=0, help="every random draw is folded from it (0)")
    add("--num_workers", type=int, default=10, help="processes that read for each rank (10)")
    add("--pin_mem", action="store_true", help="accepted: memory is pinned for a GPU always")
    add("--no_pin_mem", action="store_true", help="accepted, as --pin-mem")
    add("--dist_eval", action="store_true", help="accepted: ranks share the evaluation always")
    add("--world_size", type=int, default=None, help="accepted if it is the launcher's")
    add("--dist_url", default="env://", help="accepted if env://, which the launcher sets up")
    add("--local_rank", type=int, default=None, help="accepted: the launcher says it")


def _output_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("output").add_argument
    add(
        "--output_dir",
        type=Path,
        default=Path("."),
        help="log.txt, checkpoint-N.pth, finished_checkpoint.pth; run/ holds the state to go on "
        "with, metrics and the report (.)",
    )
    add("--save_ckpt_num", type=int, default=2, help="newest checkpoint-N.pth that stay (2)")
    add("--save_freq", type=int, default=1, help="epochs between two of them (1)")
    add("--eval", action="store_true", help="evaluate --finetune, or what --output_dir holds")
    add(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any value of the engine's config, such as log.every_steps=1; may be repeated",
    )


def _dead_flags(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("refused, with the reason").add_argument
    add("--start_epoch", type=int, default=0, help="unless 0")
    add("--resplit", action="store_true")
    add("--cooldown_epochs", type=int, default=0, help="unless 0")
    add("--patience_epochs", type=int, default=None)
    add("--lr_noise", type=float, nargs="+", default=None)
    add("--lr_noise_pct", type=float, default=None)
    add("--lr_noise_std", type=float, default=None)
    add("--distillation_type", default="none", help="unless none")
    add("--distillation_alpha", type=float, default=None)
    add("--distillation_tau", type=float, default=None)
    add("--teacher_model", default=None)
    add("--teacher_path", default="")
