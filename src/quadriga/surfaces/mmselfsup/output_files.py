"""The files of a work directory as mmengine lays it out, written from a run's checkpoints.

WORK_DIR/
    NAME.py                  the resolved config
    epoch_N.pth, iter_N.pth  weights and optimizer after epoch or iteration N
    last_checkpoint          path of the newest of them
    YYYYMMDD_HHMMSS/         log and vis_data/ of each start
    run/                     the run of this engine, from which it resumes

A ``.pth`` holds ``state_dict`` under the reference's names, ``meta``, ``optimizer`` in torch's form
with one group for each parameter, ``param_schedulers`` and ``message_hub``, and under ``quadriga``
the step, by which ``--resume`` finds the checkpoint in ``run/``.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quadriga.contracts import Progress
from quadriga.engine.checkpoint.folder import list_checkpoints, step_of, verify
from quadriga.engine.checkpoint.read import EMA, OBJECTIVE, read_stored, stored_tensors
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import scaled_lr
from quadriga.engine.step.state import OPTIMIZER
from quadriga.files import fsync_file, fsync_folder, write_text
from quadriga.models.vit import ViTConfig
from quadriga.optim.parts.groups import is_exempt
from quadriga.surfaces.mmselfsup.weights import layout_of
from quadriga.weights.fit import foreign_shape
from quadriga.weights.layouts.model_stages import NOTES
from quadriga.weights.names.mmselfsup_methods import STEPS, TEACHERS

LAST = "last_checkpoint"
RUN = "run"
_FILE = re.compile(r"(epoch|iter)_(\d+)\.pth")
_SHAPED = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""Optimizer states with the shape of their parameter."""
_ORDER = (
    *("queue", "backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2"),
    *("backbone.layer3", "backbone.layer4"),
    *("backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed", "backbone.layers"),
    *("backbone.ln1", "neck.mask_token", "neck.decoder_pos_embed", "neck.decoder_embed"),
    *("neck.decoder_blocks", "neck.ln1", "neck.decoder_pred", "neck.", "head."),
)
_IN_BLOCK = (
    *(".ln1.", ".attn.qkv.", ".attn.proj.", ".ffn.layers.0.", ".ffn.layers.1.", ".ln2."),
    *(".conv1.", ".bn1.", ".conv2.", ".bn2.", ".conv3.", ".bn3.", ".downsample.0."),
    *(".downsample.1.", ".fc0.", ".bn0.", ".fc1.", ".fc2."),
)
_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BUFFERS = (*_LEAVES[2:], "queue", "queue_ptr", "queued", STEPS)
"""Last words of the names of tensors that are no parameters."""


@dataclass(frozen=True)
class OutputFiles:
    """Which files a run writes in addition to its checkpoints."""

    folder: Path
    """The work directory; it exists."""
    text: str
    """The resolved config."""
    by_epoch: bool
    """Whether files are named by epochs or by iterations."""
    epoch_steps: int
    """Optimizer steps of an epoch."""
    accumulate: int
    """Iterations of an optimizer step."""
    total_steps: int
    """Optimizer steps of the run."""
    keep: int
    """How many of the newest files stay."""
    with_optimizer: bool
    """Whether a file holds the optimizer."""
    schedulers: int
    """Length of the list ``param_scheduler``."""

    def name_at(self, step: int) -> str | None:
        """Return the name of the file after `step` steps; None within an epoch but the last."""
        if not self.by_epoch:
            return f"iter_{step * self.accumulate}.pth"
        epoch, rest = divmod(step, self.epoch_steps)
        if rest and step < self.total_steps:
            return None
        return f"epoch_{epoch + bool(rest)}.pth"

    def on_saved(self, checkpoint: Path) -> None:
        """Write the file of a complete checkpoint; see `CheckpointStore`."""
        facts = {name: value for name, value in asdict(self).items() if name != "text"}
        RunDirectory(checkpoint.parent.parent).write_sidecars(facts)
        name, step = self.name_at(step_of(checkpoint)), step_of(checkpoint)
        if name is None:
            return
        path = self.folder / name
        _write(contents(self, checkpoint, step), path)
        write_text(self.folder / LAST, str(path.absolute()))
        self._prune(path)

    def complete(self, checkpoints: Path) -> None:
        """Write the file of a run's newest checkpoint if it is missing.

        Raises:
            OSError: It cannot be written.
            InvalidCheckpoint: The checkpoint is damaged.
        """
        found = list_checkpoints(checkpoints)
        name = self.name_at(step_of(found[0])) if found else None
        if name is not None and not (self.folder / name).is_file():
            verify(found[0])
            self.on_saved(found[0])

    def _prune(self, newest: Path) -> None:
        kind, number = _parsed(newest.name)
        older = sorted(
            other
            for path in self.folder.glob(f"{kind}_*.pth")
            if _FILE.fullmatch(path.name) and (other := _parsed(path.name)[1]) <= number
        )
        for other in older[: -self.keep]:
            (self.folder / f"{kind}_{other}.pth").unlink(missing_ok=True)


def _parsed(name: str) -> tuple[str, int]:
    found = _FILE.fullmatch(name)
    assert found is not None
    return found[1], int(found[2])


def _write(content: Mapping[str, Any], path: Path) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        torch.save(dict(content), beside)
        fsync_file(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def contents(files: OutputFiles, checkpoint: Path, step: int) -> dict[str, Any]:
    """Return the content of the ``.pth`` of a checkpoint after `step` steps."""
    run = RunDirectory(checkpoint.parent.parent).read_config().config
    stored = [tensor.name for tensor in stored_tensors(checkpoint)]
    parts = tuple(
        part for part in (OBJECTIVE, EMA, OPTIMIZER) if part != OPTIMIZER or files.with_optimizer
    )
    tensors = read_stored(checkpoint, [name for name in stored if name.startswith(parts)])
    weights = _named(tensors, OBJECTIVE, run)
    average = weights | _named(tensors, EMA, run) if run.ema.decay is not None else None
    epoch, iteration = step // files.epoch_steps, step * files.accumulate
    teacher = TEACHERS.get(run.objective.kind())
    if teacher is not None:
        weights[teacher + STEPS] = torch.tensor(iteration)
    content: dict[str, Any] = {
        "meta": {
            "cfg": files.text,
            "seed": run.seed,
            "epoch": epoch,
            "iter": iteration,
            "experiment_name": run.name,
            "time": time.strftime("%Y%m%d_%H%M%S"),
            "dataset_meta": {},
        },
        # As with an EMAHook, the averaged weights are the model's, and its own lie beside them.
        "state_dict": weights if average is None else average,
        "message_hub": {
            "log_scalars": {},
            "runtime_info": {"epoch": epoch, "iter": iteration},
            "resumed_keys": {},
        },
        "param_schedulers": [
            {"last_step": iteration, "_global_step": iteration} for _ in range(files.schedulers)
        ],
        NOTES: {"step": step},
    }
    if average is not None:
        raw = {f"module.{name}": tensor for name, tensor in weights.items()}
        content["ema_state_dict"] = {"steps": torch.tensor(step), **raw}
    if files.with_optimizer:
        progress = Progress(step - 1, files.total_steps, run.train.batch_size, 1)
        peak = scaled_lr(run.optim, run.train.batch_size)
        rate = peak * run.schedule.factor(progress)
        content["optimizer"] = optimizer_state(tensors, weights, run, rate)
    return content


def _named(tensors: Mapping[str, Tensor], part: str, run: RunConfig) -> dict[str, Tensor]:
    """Return the tensors of a part of a checkpoint under the reference's names, in its order."""
    own = {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
    layout = layout_of(run)
    split = layout.split({name: _shaped(name, tensor, run) for name, tensor in own.items()})
    named = {target: tensor for name, tensor in split.items() if (target := layout.written(name))}
    return {name: named[name] for name in sorted(named, key=_order)}


def _shaped(name: str, tensor: Tensor, run: RunConfig) -> Tensor:
    return foreign_shape(name, tensor, run.model) if isinstance(run.model, ViTConfig) else tensor


def optimizer_state(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], run: RunConfig, rate: float
) -> dict[str, Any]:
    """Return the optimizer's state in torch's form, with a group for each parameter.

    Args:
        tensors: ``optimizer.PARAMETER.KEY`` -> tensor, and ``objective.PARAMETER`` -> tensor.
        weights: The reference's names of all tensors, in its order.
        run: The run's config.
        rate: The learning rate of the last step.
    """
    layout, optim = layout_of(run), run.optim
    rules = {}
    for name, tensor in weights.items():
        own = layout.table.ours(layout.plain(name)) or name
        exempt = is_exempt(own, nn.Parameter(tensor, False), optim.no_decay, optim.decay_vectors)
        is_constant = any(part in own for part in optim.constant_lr)
        lr = scaled_lr(optim, run.train.batch_size) if is_constant else rate
        lr *= math.prod(factor for part, factor in optim.lr_scales.items() if part in own)
        rules[name] = {"lr": lr, "weight_decay": 0.0 if exempt else optim.weight_decay}
    parameters = [name for name in weights if name.rpartition(".")[2] not in _BUFFERS]
    number = {name: place for place, name in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith(OPTIMIZER):
            continue
        own, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
        target = layout.written(own)
        if target is not None:
            shaped = _shaped(own, tensor, run) if key in _SHAPED else tensor
            state.setdefault(number[target], {})[key] = shaped
    groups = [{**rules[name], "name": name, "params": [i]} for name, i in number.items()]
    return {"state": state, "param_groups": groups}


def _order(name: str) -> tuple[int, ...]:
    """Return where a tensor stands among those of a model; a teacher's stand behind all others."""
    rest = name.partition("module.")[2]
    is_teacher = bool(rest)
    if is_teacher:
        name = ("backbone." if rest.startswith("0.") else "neck.") + rest[2:]
    first = next((i for i, start in enumerate(_ORDER) if name.startswith(start)), len(_ORDER))
    block = re.search(r"\.(?:layers|decoder_blocks|layer\d)\.(\d+)\.", name)
    inner = block is not None or name.startswith(("neck.", "head."))
    part = next((i for i, piece in enumerate(_IN_BLOCK) if inner and piece in name), 0)
    leaf = name.rpartition(".")[2]
    return (
        int(is_teacher),
        first,
        int(block[1]) if block else 0,
        part,
        _LEAVES.index(leaf) if leaf in _LEAVES else 0,
    )
