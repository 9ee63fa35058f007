"""The values of a run's config from the flags of the model-assembling ``main.py``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from quadriga.config.base import construct
from quadriga.contracts import OptimizerConfig
from quadriga.errors import UserError
from quadriga.surfaces.model_assembling.checks import OPTIMIZERS
from quadriga.surfaces.model_assembling.models import find_model
from quadriga.surfaces.model_assembling.output_files import OutputFiles
from quadriga.surfaces.model_assembling.sources import meta_depths, source_of

LR_BATCH = 512
"""Batch size for which ``--lr`` is given; the rate is scaled linearly."""
REPEATS = 3
"""Views of each sample in a step with repeated augmentation."""


def batch_of(flags: argparse.Namespace, ranks: int) -> int:
    """Return the samples of an update over all processes."""
    batch: int = flags.batch_size * flags.update_freq * ranks
    return batch


def target_depths(flags: argparse.Namespace) -> tuple[int, ...]:
    """Return the blocks of each module of the run's model; in phase MT, of the whole target.

    In phase MT, ``--divided_depths`` has the target's depth at ``--idx`` only; the other modules
    get the same depth unless ``--target_depths`` is given.
    """
    if flags.eval or flags.phase != "MT":
        return tuple(flags.divided_depths)
    own = (flags.divided_depths[flags.idx],) * len(flags.divided_depths)
    return tuple(flags.target_depths or own)


def config_tree(flags: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """Return the values of the run's `RunConfig`, except those given in epochs.

    Args:
        flags: The command line.
        ranks: Number of processes.

    Raises:
        UserError: A name is unknown, or a file is missing or of another model.
    """
    named = find_model(flags.model)
    image_px = flags.input_size or named.image_px
    batch = batch_of(flags, ranks)
    return {
        "name": f"{flags.phase}_{flags.model}",
        "seed": flags.seed,
        "model": {
            **named.as_dict(),
            "image_px": image_px,
            "depth": sum(target_depths(flags)),
            "drop_path": flags.drop_path,
            "dropout": flags.drop,
        },
        "objective": {"kind": "supervised", "smoothing": flags.smoothing},
        "data": data_of(flags),
        "views": _views(flags, image_px),
        "optim": _optimizer(flags),
        "train": {
            "batch_size": batch,
            "accumulate": flags.update_freq,
            "repeats": min(REPEATS, batch) if flags.repeated_aug else 1,
            "device": flags.device,
            "precision": "bfloat16" if flags.use_amp else "float32",
        },
        "modular": _modular(flags),
        "warm_start": {"path": _start_of(flags)},
        "loader": {"workers": flags.num_workers},
        "evaluation": {
            "protocols": [{"kind": "held_out", "batch_size": math.floor(1.5 * flags.batch_size)}],
            "workers": flags.num_workers,
        },
    }


def with_length(
    tree: dict[str, Any], flags: argparse.Namespace, samples: int, ranks: int
) -> dict[str, Any]:
    """Return the tree with the values given in epochs, converted to updates.

    An epoch is ``samples // batch`` updates; the remaining samples do not count.

    Args:
        tree: The result of `config_tree`.
        flags: The command line.
        samples: Samples of the training data.
        ranks: Number of processes.

    Raises:
        UserError: The samples are too few for one update.
    """
    batch = batch_of(flags, ranks)
    if samples < batch:
        raise UserError(
            f"--data-path must have at least the {batch} samples of one update (--batch_size "
            f"{flags.batch_size} x --update_freq {flags.update_freq} x {ranks} processes), but has "
            f"{samples}; lower --batch_size"
        )
    epoch = samples // batch
    total = flags.epochs * epoch
    return {
        **tree,
        "train": {**tree["train"], "steps": total},
        "schedule": _schedule(flags, batch, epoch),
        "log": {"every_steps": max(1, min(10, epoch // 10))},
        "checkpoint": {
            "every_steps": min(total, epoch * flags.save_freq),
            "keep": flags.save_ckpt_num,
        },
        "evaluation": {**tree["evaluation"], "every_epochs": epoch * batch / samples},
    }


def files_of(flags: argparse.Namespace, samples: int, ranks: int) -> OutputFiles:
    """Return which files the run writes into ``--output_dir``.

    Args:
        flags: The command line.
        samples: Samples of the training data, enough for one update.
        ranks: Number of processes.
    """
    epoch = samples // batch_of(flags, ranks)
    return OutputFiles(
        folder=flags.output_dir,
        phase=flags.phase,
        depths=tuple(flags.divided_depths),
        target_depths=tuple(flags.target_depths) if flags.target_depths else None,
        epoch_steps=epoch,
        total_steps=flags.epochs * epoch,
        keep=flags.save_ckpt_num,
    )


def data_of(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the data's config; for evaluation, ``val`` alone is enough."""
    root = flags.data_path
    if flags.data_set == "IMNET":
        only = flags.eval and not (root / "train").is_dir() and (root / "val").is_dir()
        found: dict[str, Any] = {"kind": "image_folder", "root": str(root)}
        return {**found, "train_split": "val"} if only else found
    if flags.data_set == "CIFAR":
        return {"kind": "cifar", "root": str(root)}
    year = 2018 if flags.data_set == "INAT" else 2019
    found = {"kind": "inaturalist", "root": str(root), "year": year}
    return {**found, "level": flags.inat_category}


def _views(flags: argparse.Namespace, image_px: int) -> dict[str, Any]:
    return {
        "kind": "supervised_views",
        "image_px": image_px,
        # Small images are padded and shifted, not enlarged, as in the reference implementation.
        "crop": "padded" if image_px <= 32 else "resized",
        "interpolation": flags.train_interpolation,
        "augment": flags.aa or "none",
        "color_jitter": flags.color_jitter,
        "erase_probability": flags.reprob,
        "erase_mode": flags.remode,
        "erase_count": flags.recount,
        "mixup": flags.mixup,
        "cutmix": flags.cutmix,
        "cutmix_minmax": flags.cutmix_minmax,
        "mix_probability": flags.mixup_prob,
        "mix_switch_probability": flags.mixup_switch_prob,
        "mix_mode": flags.mixup_mode,
    }


def _optimizer(flags: argparse.Namespace) -> dict[str, Any]:
    kind, fixed = OPTIMIZERS[flags.opt.lower()]
    config = construct(OptimizerConfig, {"kind": kind})  # type: ignore[type-abstract]
    fields = type(config).model_fields
    given = {"eps": flags.opt_eps, "betas": flags.opt_betas}
    for name, value in given.items():
        if value is not None and name not in fields:
            raise UserError(f"--opt-{name} has no meaning for --opt {flags.opt}; remove it")
    own = {
        "eps": 1e-8 if flags.opt_eps is None else flags.opt_eps,
        "betas": flags.opt_betas or (0.9, 0.999),
        "momentum": flags.momentum,
    }
    return {
        "kind": kind,
        **fixed,
        "lr": flags.lr,
        "lr_batch": LR_BATCH,
        "lr_scaling": "linear",
        "weight_decay": flags.weight_decay,
        "clip_norm": flags.clip_grad,
        **{name: value for name, value in own.items() if name in fields},
    }


def _schedule(flags: argparse.Namespace, batch: int, epoch: int) -> dict[str, Any]:
    """Return the schedule in updates; rates not scaled with the batch become factors."""
    peak = flags.lr * batch / LR_BATCH
    shared = {
        "warmup_steps": flags.warmup_epochs * epoch,
        "start_factor": factor_of(flags.warmup_lr, peak),
    }
    if flags.sched == "step":
        every = max(1, round(flags.decay_epochs * epoch))
        falls = list(range(every, flags.epochs * epoch, every))
        return {
            "kind": "step_decay",
            **shared,
            "milestone_steps": falls,
            "gamma": flags.decay_rate,
        }
    kind = "warmup_cosine" if flags.sched == "cosine" else "tanh"
    # The curve spans the whole run, as in the reference implementation: the warm-up does not
    # shift it.
    return {
        "kind": kind,
        **shared,
        "final_factor": factor_of(flags.min_lr, peak),
        "under_warmup": True,
    }


def factor_of(rate: float, peak: float) -> float:
    """Return a learning rate as a factor of the peak, at most 1."""
    return min(1.0, rate / peak) if peak > 0 else 1.0


def _modular(flags: argparse.Namespace) -> dict[str, Any] | None:
    if flags.eval:
        return None
    if flags.phase == "MT":
        meta = source_of(flags.meta_model)
        return {
            "kind": "hybrid",
            "depths": list(target_depths(flags)),
            "live": [flags.idx],
            "meta": str(meta),
            "meta_depths": list(meta_depths(meta, flags.divided_depths, flags.idx)),
            "initialise": flags.initialise,
            "imitation": flags.imitation,
        }
    return assembly_of(flags) if flags.phase == "FT" else None


def assembly_of(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the config of the assembly from ``--incubation_models``."""
    return {
        "kind": "assembly",
        "depths": list(flags.divided_depths),
        "modules": [str(source_of(path)) for path in flags.incubation_models],
    }


def _start_of(flags: argparse.Namespace) -> str | None:
    return str(source_of(flags.finetune)) if flags.finetune and not flags.eval else None


def notes_of(flags: argparse.Namespace, ranks: int) -> list[str]:
    """Return a line for each flag whose effect differs from what it says."""
    lines = []
    peak = flags.lr * batch_of(flags, ranks) / LR_BATCH
    if flags.use_amp:
        lines.append("--use_amp 1: computing in bfloat16, which needs no loss scaling")
    for name in ("min_lr", "warmup_lr"):
        rate = getattr(flags, name)
        if rate > peak:
            lines.append(
                f"--{name.replace('_', '-')} {rate:g} is above the peak of {peak:.3g} (--lr x "
                f"batch / {LR_BATCH}): the peak is taken"
            )
    if flags.warmup_epochs > flags.epochs:
        lines.append("--warmup-epochs is longer than the run: the learning rate never falls")
    return lines


def folder_of(flags: argparse.Namespace) -> Path:
    """Return the run's directory."""
    return Path(flags.output_dir) / "run"
