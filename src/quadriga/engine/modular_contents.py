"""What a file in the published modular layout holds of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from quadriga.contracts import Progress
from quadriga.engine.checkpoint.read import OBJECTIVE, read_stored, stored_tensors
from quadriga.engine.modular_files_config import ModularFilesConfig
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import scaled_lr
from quadriga.engine.step.state import OPTIMIZER
from quadriga.models.vit import ViTConfig
from quadriga.weights.fit import foreign_shape
from quadriga.weights.layouts.model_stages import (
    NOTES,
    digest,
    document,
    foreign_name,
    foreign_names,
)

LIVE, META = "live.", "meta."
"""What the names of a hybrid's tensors start with (`quadriga.modular`)."""

_BLOCK = re.compile(r"(?<=blocks\.)(\d+)(?=\.)")
_SHAPED = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta")
"""States that have the shape of their parameter."""
_PARTS = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm", "head")
_IN_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
"""The order of timm's parameters."""


def contents(
    config: ModularFilesConfig, run: RunConfig, checkpoint: Path, step: int
) -> dict[str, Any]:
    """Return what the file of a checkpoint holds."""
    model = run.model
    assert isinstance(model, ViTConfig)
    stored = [tensor.name for tensor in stored_tensors(checkpoint)]
    tensors = read_stored(checkpoint, [name for name in stored if name.startswith(OBJECTIVE)])
    own = {name.removeprefix(OBJECTIVE): tensor for name, tensor in tensors.items()}
    scaler = read_stored(checkpoint, [n for n in stored if n.startswith("executor.loss_scale")])
    rate = learning_rate(config, run, step)
    states = read_stored(checkpoint, [name for name in stored if name.startswith(OPTIMIZER)])
    epochs = config.total_steps // config.epoch_steps
    return {
        **document(foreign_names(whole_names(config.depths, own), model), config.depths),
        "optimizer": optimizer_state(config, run, states, rate),
        "lr_scheduler": {**run.schedule.as_dict(), "t_initial": epochs, "step": step, "lr": rate},
        "epoch": step // config.epoch_steps - 1,
        "scaler": {name.removeprefix("executor."): t.item() for name, t in scaler.items()},
        NOTES: notes(config, run, own, step),
    }


def whole_names(depths: Sequence[int], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the model that was run, a hybrid's as one model of its depth.

    Args:
        depths: Blocks of each stage of that model.
        own: The objective's tensors.
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
    config: ModularFilesConfig, run: RunConfig, own: Mapping[str, Tensor], step: int
) -> dict[str, Any]:
    """Return what the run knows of the model, as plain values."""
    found = {
        "phase": config.phase,
        "step": step,
        "epochs": config.total_steps // config.epoch_steps,
        "depths": config.depths,
        "model": {**run.model.as_dict(), "classes": own_classes(own)},
    }
    meta = {
        name.removeprefix(META).partition(".")[2]: tensor
        for name, tensor in own.items()
        if name.startswith(META)
    }
    if meta:
        (index,) = {int(name.split(".")[1]) for name in own if name.startswith(LIVE)}
        found |= {"index": index, "depths": config.target_depths, "meta": digest(meta)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def own_classes(own: Mapping[str, Tensor]) -> int:
    """Return the number of classes of a model."""
    return next(t.shape[0] for name, t in own.items() if name.endswith("head.weight"))


def learning_rate(config: ModularFilesConfig, run: RunConfig, step: int) -> float:
    """Return the learning rate of the last step that was made."""
    batch = run.train.batch_size
    progress = Progress(step - 1, config.total_steps, batch, config.epoch_steps * batch)
    return scaled_lr(run.optim, batch) * run.schedule.factor(progress)


def optimizer_state(
    config: ModularFilesConfig, run: RunConfig, states: Mapping[str, Tensor], rate: float
) -> dict[str, Any]:
    """Return the optimizer's state in torch's form, parameters in the order of timm's models.

    As in timm, the first group are the parameters without weight decay.

    Args:
        config: The stages of the model that was run.
        run: The run.
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
        for name, tensor in whole_names(config.depths, own).items():
            target = foreign_name(name)
            shaped = foreign_shape(name, tensor, model) if key in _SHAPED else tensor
            foreign.setdefault(target, {})[key] = shaped
            # A vector never decays, and its state has its shape.
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
