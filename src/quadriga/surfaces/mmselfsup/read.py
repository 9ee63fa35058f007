"""A command line and its config file as the engine's run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.config.provenance import Resolved
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.surfaces.mmselfsup.arguments import AUTO, config_file, shipped_twin, work_dir_of
from quadriga.surfaces.mmselfsup.config import apply_options, dump_config, read_config
from quadriga.surfaces.mmselfsup.data import data_of
from quadriga.surfaces.mmselfsup.learning_rate import record_of, shipped_lr
from quadriga.surfaces.mmselfsup.output_files import OutputFiles
from quadriga.surfaces.mmselfsup.to_config import (
    config_tree,
    lengths_of,
    saving_of,
    warm_start,
    with_rules,
)
from quadriga.surfaces.mmselfsup.walk import check, check_options, names_of_its_own, plain


@dataclass(frozen=True)
class Given:
    """A config file with the options of the command line."""

    name: str
    """Name of the file without its ending."""
    config: dict[str, Any]
    """Its values, with plain types."""
    text: str
    """The resolved config as the text of a config file."""
    options: tuple[str, ...]
    """Paths that the command line set."""
    file: Path
    work_dir: Path
    weights: str | None
    """The config's weights to start from."""
    notes: tuple[str, ...]
    """What is to be said at the start."""


@dataclass(frozen=True)
class Training:
    """A run, and what lies beside it."""

    resolved: Resolved[RunConfig]
    files: OutputFiles
    notes: tuple[str, ...]


def read_given(flags: argparse.Namespace) -> Given:
    """Read the config of a command line.

    Raises:
        UserError: The config, or an option, is invalid or refused.
    """
    file = config_file(flags.config)
    raw = read_config(file)
    paths = tuple(word.partition("=")[0] for word in flags.cfg_options)
    check_options(plain(raw), paths)
    apply_options(raw, flags.cfg_options)
    work_dir = work_dir_of(flags, raw)
    raw["work_dir"] = str(work_dir)
    raw["launcher"] = flags.launcher or raw.get("launcher") or "none"
    if flags.amp:
        _set_amp(raw)
    weights = None if raw.get("resume") else raw.get("load_from")
    if flags.resume is not None:
        raw |= {"resume": True, "load_from": None if flags.resume == AUTO else flags.resume}
    config = plain(raw)
    idle = check(config)
    notes = [f"no effect here: {', '.join(idle)}"] if idle else []
    own = names_of_its_own(config)
    if own:
        notes.append(f"names of the config's own, of which no key is made: {', '.join(own)}")
    text = dump_config(raw)
    return Given(file.stem, config, text, paths, file, work_dir, weights, tuple(notes))


def _set_amp(raw: dict[str, Any]) -> None:
    wrapper = raw.get("optim_wrapper") or {}
    kind = str(wrapper.get("type", "OptimWrapper")).rpartition(".")[2]
    if kind not in ("OptimWrapper", "AmpOptimWrapper"):
        raise UserError(
            f"--amp needs optim_wrapper.type OptimWrapper, but it is {kind}; remove one of the two"
        )
    wrapper.setdefault("loss_scale", "dynamic")
    raw["optim_wrapper"] = {**wrapper, "type": "AmpOptimWrapper"}


def read_run(given: Given, ranks: int, on_cpu: bool) -> Training:
    """Make the run of a config.

    Args:
        given: The config.
        ranks: Processes.
        on_cpu: Whether it computes on the CPU.

    Raises:
        UserError: A value is invalid, or the images cannot be found.
    """
    config, notes = given.config, list(given.notes)
    _check_complete(config)
    samples = len(_images(config))
    lengths = lengths_of(config, samples, ranks)
    twin = shipped_twin(given.file)
    record = record_of(given.name, config, given.options, shipped_lr(twin, _read_plain))
    tree = config_tree(config, given.name, lengths, record, on_cpu)
    tree["warm_start"] = warm_start(config, given.weights)
    notes += [*lengths.notes, record.why]
    if (config.get("randomness") or {}).get("seed") is None:
        notes.append("seed 0: randomness.seed is not set")
    wrapper = config["optim_wrapper"]
    if on_cpu and wrapper.get("type") == "AmpOptimWrapper" and wrapper.get("dtype") != "bfloat16":
        notes.append("float16 -> bfloat16, which needs no loss scale: the CPU has no float16")
    run = with_rules(tree, config)
    hook = (config.get("default_hooks") or {}).get("checkpoint") or {}
    schedulers = config.get("param_scheduler") or []
    files = OutputFiles(
        folder=given.work_dir,
        text=given.text,
        by_epoch=hook.get("by_epoch", True),
        epoch_steps=lengths.epoch_steps,
        accumulate=lengths.accumulate,
        total_steps=lengths.total_steps,
        keep=saving_of(config, lengths)["keep"],
        with_optimizer=hook.get("save_optimizer", True),
        schedulers=len(schedulers) if isinstance(schedulers, list) else 1,
    )
    return Training(Resolved.of(run, str(given.file)), files, tuple(notes))


def _read_plain(path: Path) -> Any:
    return plain(read_config(path))


def _check_complete(config: Mapping[str, Any]) -> None:
    for path in (
        "train_dataloader.dataset.pipeline",
        "optim_wrapper.optimizer.lr",
        "optim_wrapper.optimizer.type",
        "model.backbone.type",
        "train_cfg",
    ):
        node: Any = config
        for part in path.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if node is None:
            raise UserError(f"{path} must be set, but is not; add it to the config")


def _images(config: Mapping[str, Any]) -> Any:
    from quadriga.config.base import construct
    from quadriga.contracts import DatasetConfig

    tree = data_of(config["train_dataloader"]["dataset"])
    return construct(DatasetConfig, tree, path="data").build("train")  # type: ignore[type-abstract]
