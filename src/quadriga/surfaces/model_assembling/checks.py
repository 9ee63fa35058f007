"""Checks of the flags of the documented model-assembling command, without reading a file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from quadriga.errors import UserError, did_you_mean

OPTIMIZERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "adamw": ("adamw", {}),
    "adam": ("adam", {}),
    "nadam": ("nadam", {"decoupled": False}),
    "radam": ("radam", {}),
    "sgd": ("sgd", {"nesterov": True}),
    "nesterov": ("sgd", {"nesterov": True}),
    "momentum": ("sgd", {"nesterov": False}),
    "rmsprop": ("rmsprop", {}),
    "adadelta": ("adadelta", {}),
    "adafactor": ("adafactor", {}),
    "lamb": ("lamb", {}),
}
"""Value of ``--opt`` -> kind and fields of the optimizer."""

_NO_OPTIMIZER = {
    "adamp": "adamw",
    "sgdp": "sgd",
    "adahessian": "adamw, as the other needs second derivatives",
    "rmsproptf": "rmsprop",
    "novograd": "lamb",
    "nvnovograd": "lamb",
}
"""Optimizer of the reference implementation that is not offered -> replacement."""

_DISTILLATION = (
    "a student of a teacher needs a second head (deit_*_distilled), which belongs to no module; "
    "remove it, or imitate the meta model with --imitation"
)
_NOISE = "the learning rate is a function of the step alone; remove it"


def check_flags(flags: argparse.Namespace) -> None:
    """Check what can be checked without a file.

    Raises:
        UserError: A flag is out of range, dead, or contradicts another.
    """
    _check_dead(flags)
    _check_numbers(flags)
    _check_choices(flags)
    _check_phase(flags)


def _check_dead(flags: argparse.Namespace) -> None:
    """Refuse flags that have no effect in the reference implementation, or cannot work."""
    refused = {
        "--resplit": (flags.resplit, "there are no augmentation splits to leave one out of"),
        "--start-epoch": (flags.start_epoch, "a run goes on where its newest checkpoint is"),
        "--cooldown-epochs": (
            flags.cooldown_epochs,
            "the run ends with its schedule, as it always did; remove it",
        ),
        "--patience-epochs": (flags.patience_epochs, "it belongs to --sched plateau"),
        "--lr-noise": (flags.lr_noise, _NOISE),
        "--lr-noise-pct": (flags.lr_noise_pct, _NOISE),
        "--lr-noise-std": (flags.lr_noise_std, _NOISE),
        "--distillation-type": (flags.distillation_type != "none", _DISTILLATION),
        "--distillation-alpha": (flags.distillation_alpha, _DISTILLATION),
        "--distillation-tau": (flags.distillation_tau, _DISTILLATION),
        "--teacher-model": (flags.teacher_model, _DISTILLATION),
        "--teacher-path": (flags.teacher_path, _DISTILLATION),
    }
    for name, (value, reason) in refused.items():
        if value is not None and value is not False and value != 0 and value != "":
            raise UserError(f"{name} is refused: {reason}")


def _check_numbers(flags: argparse.Namespace) -> None:
    least = {
        "batch_size": 1,
        "update_freq": 1,
        "epochs": 1,
        "recount": 1,
        "save_ckpt_num": 1,
        "save_freq": 1,
        "warmup_epochs": 0,
        "num_workers": 0,
        "seed": 0,
        "lr": 0,
        "min_lr": 0,
        "warmup_lr": 0,
        "imitation": 0,
    }
    for name, bound in least.items():
        value = getattr(flags, name)
        if not value >= bound:
            raise UserError(f"--{name} must be at least {bound}, but is {value}")
    if not flags.decay_epochs > 0:
        raise UserError(f"--decay-epochs must be above 0, but is {flags.decay_epochs:g}")
    if flags.use_amp not in (0, 1):
        raise UserError(f"--use_amp must be 0 or 1, but is {flags.use_amp}")
    if flags.input_size is not None and flags.input_size < 1:
        raise UserError(f"--input-size must be at least 1, but is {flags.input_size}")


def _check_choices(flags: argparse.Namespace) -> None:
    name = flags.opt.lower()
    if name.startswith("lookahead_") or name.startswith("fused"):
        raise UserError(
            f"--opt {flags.opt} is not offered: torch's own implementations are used; choose "
            f"{name.removeprefix('lookahead_').removeprefix('fused')}"
        )
    if name in _NO_OPTIMIZER:
        raise UserError(f"--opt {flags.opt} is not offered; use {_NO_OPTIMIZER[name]}")
    if name not in OPTIMIZERS:
        raise UserError(f"--opt is unknown: {flags.opt}{did_you_mean(name, OPTIMIZERS)}")
    if flags.sched == "plateau":
        raise UserError(
            "--sched plateau is refused: it waits for a metric that it was never given; use "
            "cosine, tanh or step"
        )
    if flags.sched not in ("cosine", "tanh", "step"):
        raise UserError(f"--sched must be cosine, tanh or step, but is {flags.sched!r}")
    if flags.dist_url != "env://":
        raise UserError(
            f"--dist_url must be env://, but is {flags.dist_url}: torchrun says where processes "
            "meet; remove it"
        )
    for flag in ("finetune", "meta_model"):
        if "://" in getattr(flags, flag):
            raise UserError(
                f"--{flag} must be a path, but is {getattr(flags, flag)}: nothing is downloaded"
            )


def _check_phase(flags: argparse.Namespace) -> None:
    """Check the flags of the phases against each other."""
    depths = flags.divided_depths
    if depths is None:
        raise UserError(
            "--divided_depths must be given: the blocks of each module, such as 3 3 3 3 for a "
            "12-block model in 4 modules"
        )
    if min(depths) < 1:
        raise UserError(
            f"--divided_depths must be 1 block or more for each module, but is "
            f"{' '.join(map(str, depths))}"
        )
    if flags.phase != "E2E" and len(depths) < 2:
        raise UserError(
            f"--divided_depths must be two modules or more in phase {flags.phase}, but is "
            f"{depths[0]}; train a whole model with --phase E2E"
        )
    of_phase = {"MT": ("idx", "meta_model", "target_depths"), "FT": ("incubation_models",)}
    for phase, names in of_phase.items():
        for name in names:
            if flags.phase != phase and getattr(flags, name) not in (None, "", []):
                raise UserError(f"--{name} is for --phase {phase}, but --phase is {flags.phase}")
    if flags.phase == "MT":
        _check_module(flags)
    elif flags.imitation or flags.initialise != "random":
        name = "imitation" if flags.imitation else "initialise"
        raise UserError(f"--{name} is for --phase MT, but --phase is {flags.phase}")
    if flags.phase in ("MT", "FT") and flags.finetune and not flags.eval:
        raise UserError(
            f"--finetune must not be given in phase {flags.phase}, which says itself where the "
            "weights come from; tune a finished model with --phase E2E --finetune FILE"
        )
    if flags.phase == "FT" and not flags.eval and len(flags.incubation_models) != len(depths):
        raise UserError(
            f"--incubation_models must be a file for each of the {len(depths)} modules of "
            f"--divided_depths, but are {len(flags.incubation_models)}; check the pattern"
        )


def _check_module(flags: argparse.Namespace) -> None:
    depths, index = flags.divided_depths, flags.idx
    if flags.eval:
        return
    if index is None:
        raise UserError(f"--idx must be given in phase MT: which module, 0 to {len(depths) - 1}")
    if not 0 <= index < len(depths):
        raise UserError(
            f"--idx must be from 0 to {len(depths) - 1} for the {len(depths)} modules of "
            f"--divided_depths, but is {index}"
        )
    if not flags.meta_model:
        raise UserError(
            "--meta_model must be given in phase MT: the finished_checkpoint.pth of phase PT"
        )
    target = flags.target_depths
    if target is not None and (len(target) != len(depths) or min(target) < 1):
        raise UserError(
            f"--target_depths must be 1 block or more for each of the {len(depths)} modules, but "
            f"is {' '.join(map(str, target))}"
        )
    if target is not None and target[index] != depths[index]:
        raise UserError(
            f"--target_depths must have the {depths[index]} blocks of module {index} that "
            f"--divided_depths has, but has {target[index]}"
        )
