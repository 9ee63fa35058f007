"""The values of a run's config from those of a mmselfsup config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quadriga.engine.build import build_on_meta
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.surfaces.mmselfsup.data import data_of
from quadriga.surfaces.mmselfsup.learning_rate import Record
from quadriga.surfaces.mmselfsup.lengths import Lengths
from quadriga.surfaces.mmselfsup.methods import HOOKS, METHODS
from quadriga.surfaces.mmselfsup.paramwise import optimizer_rules
from quadriga.surfaces.mmselfsup.schedule import Units, schedule_of
from quadriga.surfaces.mmselfsup.walk import type_of
from quadriga.surfaces.mmselfsup.weights import layout_of

KEEP_ALL = 2**30
_LOGGERS = {
    "TensorboardVisBackend": "tensorboard",
    "WandbVisBackend": "wandb",
    "MLflowVisBackend": "mlflow",
}


def lengths_of(config: Mapping[str, Any], samples: int, ranks: int) -> Lengths:
    """Return the batch and the steps of a run.

    Args:
        config: The config.
        samples: Images of the data.
        ranks: Processes.

    Raises:
        UserError: The images are too few for a step, or the length is not given.
    """
    loader, wrapper = config["train_dataloader"], config["optim_wrapper"]
    accumulate = wrapper.get("accumulative_counts") or 1
    per_process = loader.get("batch_size")
    if not isinstance(per_process, int) or per_process < 1:
        raise UserError(
            f"train_dataloader.batch_size must be 1 or more, but is {per_process}; set it"
        )
    batch, notes = per_process * accumulate * ranks, []
    sampler = loader.get("sampler") or {}
    whole_only = loader.get("drop_last") or sampler.get("round_up") is False
    if samples < batch:
        if whole_only:
            raise UserError(
                f"train_dataloader.batch_size must be at most {samples // ranks // accumulate} "
                f"for {samples} images, but is {per_process}; lower it, or set drop_last=False"
            )
        smaller = max(ranks * accumulate, math.ceil(samples / ranks) * ranks)
        notes.append(f"batch {batch} -> {smaller}: there are only {samples} images")
        batch = smaller
    epoch_steps = samples // batch if whole_only else math.ceil(samples / batch)
    total = _total(config, epoch_steps, accumulate)
    return Lengths(batch, ranks, accumulate, epoch_steps, total, tuple(notes))


def _total(config: Mapping[str, Any], epoch_steps: int, accumulate: int) -> int:
    loop = config.get("train_cfg") or {}
    by_epoch = type_of(loop, "train_cfg") == "EpochBasedTrainLoop"
    key = "max_epochs" if by_epoch else "max_iters"
    length = loop.get(key)
    if not isinstance(length, int) or length < 1:
        raise UserError(f"train_cfg.{key} must be 1 or more, but is {length}; set it")
    return length * epoch_steps if by_epoch else math.ceil(length / accumulate)


def config_tree(
    config: Mapping[str, Any], name: str, lengths: Lengths, record: Record, on_cpu: bool
) -> dict[str, Any]:
    """Return the values of the run's `RunConfig`.

    Args:
        config: The config, checked against the table.
        name: Name of its file without the ending.
        lengths: Batch and steps.
        record: The batch of record of the learning rate.
        on_cpu: Whether the run computes on the CPU, which has no float16.

    Raises:
        UserError: Values contradict each other or are missing.
    """
    loader, wrapper = config["train_dataloader"], config["optim_wrapper"]
    model, dataset = config["model"], loader["dataset"]
    method = METHODS[model["type"]]
    views = method.views_of(dataset.get("pipeline") or [], model.get("data_preprocessor") or {})
    _check_hooks(config)
    parts = method.values_of(config, views["image_px"], lengths)
    units = Units(lengths.epoch_steps, lengths.accumulate, wrapper["optimizer"]["lr"])
    schedulers = config.get("param_scheduler") or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    hooks = config.get("default_hooks") or {}
    interval = (hooks.get("logger") or {}).get("interval", 10)
    return {
        "name": name,
        "seed": (config.get("randomness") or {}).get("seed") or 0,
        **parts,
        "data": data_of(dataset),
        "views": views,
        "optim": _optimizer(config, lengths, record),
        "schedule": schedule_of(schedulers, units),
        "ema": _ema(config),
        "train": {
            "steps": lengths.total_steps,
            "batch_size": lengths.batch,
            "accumulate": lengths.accumulate,
            "precision": precision_of(wrapper, on_cpu),
            "loss_scale": _loss_scale(wrapper),
            "compile": bool(config.get("compile")),
        },
        "loader": {"workers": loader.get("num_workers", 0)},
        "log": {
            "every_steps": max(1, round(interval / lengths.accumulate)),
            "loggers": _loggers(config),
        },
        "checkpoint": saving_of(config, lengths),
    }


def _check_hooks(config: Mapping[str, Any]) -> None:
    for place, hook in enumerate(config.get("custom_hooks") or []):
        method = HOOKS.get(hook["type"])
        if method not in (None, config["model"]["type"]):
            raise UserError(
                f"custom_hooks.{place}.type {hook['type']} is for model.type={method}, but that is "
                f"{config['model']['type']}; remove it"
            )


def precision_of(wrapper: Mapping[str, Any], on_cpu: bool) -> str:
    """Return the dtype of the matrix products."""
    if wrapper.get("type", "OptimWrapper") != "AmpOptimWrapper":
        return "float32"
    dtype = str(wrapper.get("dtype") or "float16")
    return "bfloat16" if on_cpu else dtype


def _loss_scale(wrapper: Mapping[str, Any]) -> float | None:
    """Return the fixed scale of float16's loss; None for a dynamic one, or another dtype.

    Raises:
        UserError: It is neither.
    """
    scale = wrapper.get("loss_scale", "dynamic")
    if scale is None or scale == "dynamic":
        return None
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise UserError(
            f"optim_wrapper.loss_scale must be dynamic or a number, but is {scale}; set it"
        )
    return float(scale)


def _optimizer(config: Mapping[str, Any], lengths: Lengths, record: Record) -> dict[str, Any]:
    wrapper = config["optim_wrapper"]
    given = {key: value for key, value in wrapper["optimizer"].items() if value is not None}
    kind = str(given.pop("type"))
    given.pop("amsgrad", None)
    given.pop("dampening", None)
    if "eta" in given:
        given["trust_coefficient"] = given.pop("eta")
    if kind == "LARS":
        given.pop("nesterov", None)
    defaults: dict[str, Any] = {"AdamW": {"betas": (0.9, 0.999), "weight_decay": 0.01}}.get(
        kind, {"momentum": 0.0, "weight_decay": 0.0}
    )
    clip = (wrapper.get("clip_grad") or {}).get("max_norm")
    return {
        "kind": kind.lower(),
        **defaults,
        **given,
        "lr_batch": record.batch or lengths.batch,
        "lr_scaling": "linear" if record.batch else "none",
        "clip_norm": clip,
    }


def with_rules(tree: Mapping[str, Any], config: Mapping[str, Any]) -> RunConfig:
    """Return the run of a tree, with the rates and decays of single parameters.

    Args:
        tree: The result of `config_tree`.
        config: The config.

    Raises:
        UserError: A value breaks a rule of the engine.
    """
    run = RunConfig.from_dict(tree)
    objective = build_on_meta(run)
    named = [(name, p) for name, p in objective.named_parameters() if p.requires_grad]
    given = config["optim_wrapper"].get("paramwise_cfg") or {}
    optimizer = config["optim_wrapper"]["optimizer"]
    fixed = None
    for hook in config.get("custom_hooks") or []:
        if hook["type"] == "SimSiamHook" and hook.get("fix_pred_lr"):
            fixed = hook.get("lr", optimizer["lr"]) / optimizer["lr"] if optimizer["lr"] else 1.0
    rules = optimizer_rules(
        named, layout_of(run).written, given, optimizer["type"] == "LARS", fixed
    )
    return RunConfig.from_dict({**tree, "optim": {**tree["optim"], **rules}})


def _ema(config: Mapping[str, Any]) -> dict[str, Any]:
    for hook in config.get("custom_hooks") or []:
        if hook["type"] == "EMAHook":
            return {"decay": 1.0 - hook.get("momentum", 0.0002)}
    return {}


def warm_start(config: Mapping[str, Any], path: str | None) -> dict[str, Any]:
    """Return the engine's ``warm_start``: weights of the whole model, or else of its backbone.

    Args:
        config: The config, whose model may name weights of the backbone.
        path: Weights of the whole model.

    Raises:
        UserError: The weights are an address and no file.
    """
    strict = True
    model = config["model"]
    backbone = model.get("backbone") or {}
    for given in (model.get("pretrained"), model.get("init_cfg"), backbone.get("init_cfg")):
        for item in given if isinstance(given, list) else [given]:
            if isinstance(item, Mapping) and item.get("type") == "Pretrained":
                item = item.get("checkpoint")
            if isinstance(item, str) and path is None:
                path, strict = item, False
    if path is not None and "://" in str(path):
        raise UserError(f"weights must be a file, but are {path}: nothing is downloaded; name one")
    return {"path": path, "strict": strict}


def _loggers(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    shown = (config.get("visualizer") or {}).get("vis_backends") or []
    kinds = [_LOGGERS[place["type"]] for place in shown if place["type"] in _LOGGERS]
    return [{"kind": kind} for kind in dict.fromkeys(kinds)]


def saving_of(config: Mapping[str, Any], lengths: Lengths) -> dict[str, Any]:
    """Return the engine's ``checkpoint``: when the run saves, and how much stays."""
    hook = (config.get("default_hooks") or {}).get("checkpoint") or {}
    interval, keep = hook.get("interval", -1), hook.get("max_keep_ckpts", -1)
    unit = lengths.epoch_steps if hook.get("by_epoch", True) else 1 / lengths.accumulate
    every = max(1, round(interval * unit)) if interval > 0 else lengths.total_steps
    return {
        "every_steps": min(every, lengths.total_steps),
        "keep": keep if keep > 0 else KEEP_ALL,
    }
