"""Files in the published modular layout, written from a run's checkpoints.

FOLDER/
    checkpoint-N.pth            after epoch N, from 0
    finished_checkpoint.pth     after the last one
    log.txt                     one JSON object per epoch
    run/                        the run, and its sidecars.json: `OutputFiles` as values

A ``.pth`` holds ``model`` and ``model_stages`` (`weights.layouts.model_stages`), ``optimizer`` in
torch's form, ``lr_scheduler``, ``epoch`` and ``scaler`` as plain values, and under ``quadriga`` the
`notes` on the model. These files are for other programs: a run resumes from its own checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quadriga.contracts import Progress
from quadriga.engine.build import build_on_meta
from quadriga.engine.checkpoint.folder import list_checkpoints, step_of, verify
from quadriga.engine.checkpoint.read import OBJECTIVE, read_stored, stored_tensors
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import scaled_lr
from quadriga.engine.step.state import OPTIMIZER
from quadriga.files import fsync_file, fsync_folder, parse_json, write_text
from quadriga.models.vit import ViTConfig
from quadriga.modular.parts.sources import LIVE, META
from quadriga.weights.fit import foreign_shape
from quadriga.weights.layouts.model_stages import (
    NOTES,
    digest,
    document,
    foreign_name,
    foreign_names,
)

FINISHED = "finished_checkpoint.pth"
LOG = "log.txt"

_NAME = re.compile(r"checkpoint-(\d+)\.pth")

_BLOCK = re.compile(r"(?<=blocks\.)(\d+)(?=\.)")
_SHAPED = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta")
"""Optimizer states with the shape of their parameter."""
_PARTS = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm", "head")
_IN_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
"""The order of timm's parameters."""


@dataclass(frozen=True)
class OutputFiles:
    """Which files a run writes in addition to its checkpoints."""

    folder: Path
    """The folder of the files; it exists once the run has begun."""
    phase: str
    """Phase of the run, for the record: PT, MT, FT or E2E."""
    depths: tuple[int, ...]
    """Blocks of each stage of the model that the run trains; for a hybrid, those of the target at
    its live module and of the meta model elsewhere."""
    target_depths: tuple[int, ...] | None
    """For a hybrid, blocks of each module of the target; None if only the live one's are known."""
    epoch_steps: int
    """Optimizer steps of an epoch; checkpoints at its multiples get files."""
    total_steps: int
    """Optimizer steps of the run, a multiple of `epoch_steps`."""
    keep: int = 2
    """How many of the newest ``checkpoint-N.pth`` to keep."""

    def epoch_at(self, step: int) -> int | None:
        """Return the epoch, from 0, that ends after `step` steps; None if none does."""
        return None if step % self.epoch_steps or step < 1 else step // self.epoch_steps - 1

    def on_saved(self, checkpoint: Path) -> None:
        """Write the files of a complete checkpoint; see `CheckpointStore`."""
        RunDirectory(checkpoint.parent.parent).write_sidecars(asdict(self))
        write_output_files(self, checkpoint)


def write_output_files(files: OutputFiles, checkpoint: Path) -> list[Path]:
    """Write the files of the epoch that a checkpoint ends; nothing if it ends no epoch.

    Args:
        files: Which files.
        checkpoint: A complete checkpoint in the directory of its run.

    Returns:
        The written files.

    Raises:
        OSError: A file cannot be written.
        UserError: The checkpoint, or the run's config, cannot be read.
    """
    step = step_of(checkpoint)
    epoch = files.epoch_at(step)
    if epoch is None:
        return []
    run = RunDirectory(checkpoint.parent.parent).read_config().config
    path = files.folder / f"checkpoint-{epoch}.pth"
    _write(contents(files, run, checkpoint, step), path)
    written = [path]
    if step == files.total_steps:
        written.append(files.folder / FINISHED)
        _twin(path, written[-1])
    _prune(files, epoch)
    return written


def write_missing(files: OutputFiles, checkpoints: Path) -> list[Path]:
    """Write the files of a run's newest checkpoint if any is missing.

    Returns:
        The written files.

    Raises:
        OSError: A file cannot be written.
        InvalidCheckpoint: The checkpoint is damaged.
        UserError: The checkpoint cannot be read.
    """
    found = list_checkpoints(checkpoints)
    if not found:
        return []
    step = step_of(found[0])
    due = [files.folder / f"checkpoint-{files.epoch_at(step)}.pth"]
    due += [files.folder / FINISHED] if step == files.total_steps else []
    if files.epoch_at(step) is None or all(path.is_file() for path in due):
        return []
    verify(found[0])
    return write_output_files(files, found[0])


def newest_epoch(folder: Path) -> int | None:
    """Return the largest N of the files ``checkpoint-N.pth``; None if there are none."""
    return max(_epochs_in(folder), default=None)


def _write(content: Mapping[str, Any], path: Path) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        torch.save(dict(content), beside)
        fsync_file(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _twin(path: Path, name: Path) -> None:
    """Link a file to a second name, or copy it if the file system has no hard links."""
    beside = name.with_name(f".{name.name}.{os.getpid()}.partial")
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        try:
            os.link(path, beside)
        except OSError:
            beside.write_bytes(path.read_bytes())
            fsync_file(beside)
        beside.replace(name)
    finally:
        beside.unlink(missing_ok=True)
    fsync_folder(name.parent)


def _epochs_in(folder: Path) -> list[int]:
    files = folder.glob("checkpoint-*.pth")  # none in a folder that is not there
    return [int(found[1]) for path in files if (found := _NAME.fullmatch(path.name))]


def _prune(files: OutputFiles, newest: int) -> None:
    older = sorted(epoch for epoch in _epochs_in(files.folder) if epoch <= newest)
    for epoch in older[: -files.keep]:
        (files.folder / f"checkpoint-{epoch}.pth").unlink(missing_ok=True)


def contents(files: OutputFiles, run: RunConfig, checkpoint: Path, step: int) -> dict[str, Any]:
    """Return the content of the ``.pth`` of a checkpoint after `step` steps."""
    model = run.model
    assert isinstance(model, ViTConfig)
    stored = [tensor.name for tensor in stored_tensors(checkpoint)]
    tensors = read_stored(checkpoint, [name for name in stored if name.startswith(OBJECTIVE)])
    own = {name.removeprefix(OBJECTIVE): tensor for name, tensor in tensors.items()}
    scaler = read_stored(checkpoint, [n for n in stored if n.startswith("executor.loss_scale")])
    rate = learning_rate(files, run, step)
    states = read_stored(checkpoint, [name for name in stored if name.startswith(OPTIMIZER)])
    epochs = files.total_steps // files.epoch_steps
    return {
        **document(foreign_names(whole_names(files.depths, own), model), files.depths),
        "optimizer": optimizer_state(files, run, states, rate),
        "lr_scheduler": {**run.schedule.as_dict(), "t_initial": epochs, "step": step, "lr": rate},
        "epoch": step // files.epoch_steps - 1,
        "scaler": {name.removeprefix("executor."): t.item() for name, t in scaler.items()},
        NOTES: notes(files, run, own, step),
    }


def whole_names(depths: Sequence[int], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the run's model; a hybrid becomes one model of its depth.

    Args:
        depths: Blocks of each stage of that model.
        own: The objective's tensors, by name.
    """
    live = {int(name.split(".")[1]) for name in own if name.startswith(LIVE)}
    if not live:
        return dict(own)
    (index,) = live
    whole = {}
    for stage in range(len(depths)):
        before = f"{LIVE}{stage}." if stage == index else f"{META}{stage}."
        names = [name for name in own if name.startswith(before)]
        lowest = min((int(n[0]) for name in names if (n := _BLOCK.search(name))), default=0)
        shift = sum(depths[:stage]) - lowest
        for name in names:
            whole[_renumbered(name.removeprefix(before), shift)] = own[name]
    return whole


def notes(
    files: OutputFiles, run: RunConfig, own: Mapping[str, Tensor], step: int
) -> dict[str, Any]:
    """Return phase, step, cut and model fields of the run as plain values."""
    found = {
        "phase": files.phase,
        "step": step,
        "epochs": files.total_steps // files.epoch_steps,
        "depths": files.depths,
        "model": {**run.model.as_dict(), "classes": own_classes(own)},
    }
    meta = {
        name.removeprefix(META).partition(".")[2]: tensor
        for name, tensor in own.items()
        if name.startswith(META)
    }
    if meta:
        (index,) = {int(name.split(".")[1]) for name in own if name.startswith(LIVE)}
        found |= {"index": index, "depths": files.target_depths, "meta": digest(meta)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def own_classes(own: Mapping[str, Tensor]) -> int:
    """Return the number of classes of a model: the rows of its head's weight."""
    return next(t.shape[0] for name, t in own.items() if name.endswith("head.weight"))


def learning_rate(files: OutputFiles, run: RunConfig, step: int) -> float:
    """Return the learning rate of the last of `step` steps."""
    batch = run.train.batch_size
    progress = Progress(step - 1, files.total_steps, batch, files.epoch_steps * batch)
    return scaled_lr(run.optim, batch) * run.schedule.factor(progress)


def optimizer_state(
    files: OutputFiles, run: RunConfig, states: Mapping[str, Tensor], rate: float
) -> dict[str, Any]:
    """Return the optimizer's state in torch's form, with parameters in the order of timm's models.

    As in timm, the first group holds the parameters without weight decay.

    Args:
        files: Provides the blocks of each stage.
        run: The run's config.
        states: ``optimizer.PARAMETER.KEY`` -> tensor.
        rate: The learning rate.
    """
    model = run.model
    assert isinstance(model, ViTConfig)
    foreign: dict[str, dict[str, Tensor]] = {}
    exempt = set()
    for key in sorted({name.rpartition(".")[2] for name in states}):
        of_key = {n.rpartition(".")[0]: t for n, t in states.items() if n.endswith(f".{key}")}
        own = {name.removeprefix(OPTIMIZER): tensor for name, tensor in of_key.items()}
        for name, tensor in whole_names(files.depths, own).items():
            target = foreign_name(name)
            shaped = foreign_shape(name, tensor, model) if key in _SHAPED else tensor
            foreign.setdefault(target, {})[key] = shaped
            # Vectors have no weight decay; a vector's state of these keys is a vector too.
            vector = key in _SHAPED and tensor.dim() < 2
            if vector or any(part in name for part in run.optim.no_decay):
                exempt.add(target)
    order = sorted(foreign, key=_order)
    groups = [[n for n in order if n in exempt], [n for n in order if n not in exempt]]
    number = {name: i for i, name in enumerate(name for group in groups for name in group)}
    settings = {"lr": rate, "initial_lr": scaled_lr(run.optim, run.train.batch_size)}
    return {
        "state": {i: foreign[name] for name, i in number.items()},
        "param_groups": [
            {
                **settings,
                "weight_decay": 0.0 if place == 0 else run.optim.weight_decay,
                "names": group,
                "params": [number[name] for name in group],
            }
            for place, group in enumerate(groups)
        ],
    }


def _order(name: str) -> tuple[int, ...]:
    block = _BLOCK.search(name)
    parts = [place for place, part in enumerate(_IN_BLOCK) if f".{part}." in name]
    first = _PARTS.index(name.partition(".")[0])
    return (first, int(block[0]) if block else 0, *parts, int(name.endswith(".bias")))


def _renumbered(name: str, shift: int) -> str:
    return _BLOCK.sub(lambda found: str(int(found[0]) + shift), name, count=1)


def log_epoch(
    files: OutputFiles, directory: RunDirectory, step: int, metrics: Mapping[str, float]
) -> None:
    """Write the line of an epoch into log.txt; it replaces lines of this and of later epochs.

    ``train_loss`` is the mean over the epoch's logged steps. Without ``held_out.loss``, or if
    `step` ends no epoch, nothing is written.

    Args:
        files: Provides the folder of log.txt and the steps of an epoch.
        directory: The run's directory.
        step: Number of finished steps.
        metrics: Results of the evaluation, such as ``held_out.loss``.

    Raises:
        OSError: The file cannot be written.
    """
    epoch = files.epoch_at(step)
    if epoch is None or "held_out.loss" not in metrics:
        return
    logged = [
        row
        for row in _json_lines(directory.metrics)
        if step - files.epoch_steps < row.get("step", 0) <= step and "lr" in row
    ]
    losses = [row["loss"] for row in logged if "loss" in row]
    first = 100 * metrics["held_out.accuracy"]
    line = {
        "train_lr": logged[-1]["lr"] if logged else None,
        "train_loss": sum(losses) / len(losses) if losses else None,
        "test_loss": metrics["held_out.loss"],
        "test_acc1": first,
        # With five classes or fewer, every answer is among the first five.
        "test_acc5": 100 * metrics.get("held_out.accuracy_5", 1.0),
        "epoch": epoch,
        "n_parameters": _parameters(files, directory),
    }
    kept = [row for row in _json_lines(files.folder / LOG) if row.get("epoch", epoch) < epoch]
    text = "".join(json.dumps(row) + "\n" for row in (*kept, line))
    write_text(files.folder / LOG, text)


def _parameters(files: OutputFiles, directory: RunDirectory) -> int:
    """Return the number of parameters of the run's model, including frozen ones."""
    objective = build_on_meta(directory.read_config().config)
    return sum(
        p.numel() for p in whole_names(files.depths, dict(objective.named_parameters())).values()
    )


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = parse_json(line)
                rows += [row] if isinstance(row, dict) else []
    return rows
