"""Replay of a single bad step from a file, in one process.

``WORK_DIR/replay/step_00000123.safetensors`` holds the objective's full tensors before the step,
and in its header the config and the step's numbers. These determine samples, masks and dropout, so
a replay needs nothing else but the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quadriga import randomness
from quadriga.config.provenance import Resolved
from quadriga.contracts import Batch, MicroBatch, Objective
from quadriga.distributed.collectives import from_main, whole
from quadriga.distributed.environment import DistEnv
from quadriga.engine.build import EXACT, build_loader, build_objective, make_stream
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan, make_plan
from quadriga.engine.step.bad_step import BadStep
from quadriga.engine.step.precision import reduced_precision
from quadriga.errors import UserError, reading
from quadriga.files import fsync_file, parse_json

_FORGIVING = EXACT.override({"max_unreadable_fraction": 1.0})

KEPT = 3
"""How many replay files of a run are kept; each is as large as the model."""


@dataclass(frozen=True)
class Recorded:
    """The step's numbers in a replay file."""

    bad: BadStep
    world_size: int
    dataset_size: int
    index: list[int]
    """Indices of the step's samples, over all ranks in rank order."""


def write_replay(
    folder: Path,
    resolved: Resolved[RunConfig],
    plan: RunPlan,
    env: DistEnv,
    objective: Objective,
    bad: BadStep,
) -> str:
    """Write the replay file of a step; every rank calls it, before the step's update.

    No rank returns before the file is written, because the run may end next, and a launcher kills
    the other ranks once one has exited.

    Returns:
        The file's path, or a clause that says why it could not be written.
    """
    tensors = {}
    for name, tensor in objective.state_dict().items():
        gathered = whole(tensor.detach())  # a collective where it is sharded: on every rank
        if env.is_main:
            tensors[name] = gathered.to("cpu", copy=True).contiguous()

    def write() -> str:
        parts = make_stream(resolved.config, plan).parts(bad.step)
        index = [index for part in parts for index in part.index.tolist()]
        recorded = Recorded(bad, plan.world_size, plan.dataset_size, index)
        header = {"config": resolved.as_json(), "recorded": json.dumps(asdict(recorded))}
        return _write(folder / f"step_{bad.step + 1:08d}.safetensors", tensors, header)

    return from_main(write, env)


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> str:
    beside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, beside, metadata=header)
        fsync_file(beside)
        os.replace(beside, path)
        # Sorted by age and not by step: a run may have resumed from an earlier step.
        files = path.parent.glob("step_*.safetensors")
        for old in sorted(files, key=lambda file: file.stat().st_mtime_ns)[:-KEPT]:
            old.unlink()
    except (OSError, safetensors.SafetensorError) as error:
        beside.unlink(missing_ok=True)
        return f"FILE, which could not be written: {error};"
    return str(path)


def read_replay(path: Path) -> tuple[Resolved[RunConfig], Recorded, dict[str, Tensor]]:
    """Read a replay file.

    Raises:
        UserError: The file is missing, damaged or not a replay file.
    """
    if path.is_dir():
        raise UserError(f"{path} must be a file, but is a folder; name one of the files in it")
    if not path.is_file():
        raise UserError(f"{path} does not exist; see the folder replay of the run")
    with reading(path, "a whole replay file"):
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        recorded = parse_json(header["recorded"])
        bad = BadStep(**recorded.pop("bad"))
        resolved = Resolved.from_json(RunConfig, header["config"])
        return resolved, Recorded(bad=bad, **recorded), tensors


@dataclass(frozen=True)
class Part:
    """The result of one micro-batch of one rank."""

    rank: int
    micro: int
    index: list[int]
    loss: float
    """Mean over the targets."""
    first: str | None
    """Name of the first module with a non-finite output, if any."""
    samples: list[int]
    """Indices of samples whose own loss is not finite; empty if `loss` is finite."""


@final
class Replay:
    """Repeats one step without its update, in this process alone."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Read the file, open the data and build the objective.

        Raises:
            UserError: The file is not a replay file, or the data set has another size.
        """
        resolved, self.recorded, tensors = read_replay(path)
        self.config, self._device = resolved.config, device
        self._dataset = self.config.data.build("train")
        if len(self._dataset) != self.recorded.dataset_size:
            raise UserError(
                f"{path} was made with {self.recorded.dataset_size} samples, but data.root holds "
                f"{len(self._dataset)}; restore the data"
            )
        plan = make_plan(self.config, len(self._dataset), self.recorded.world_size)
        self._plan = plan.of_data(self._dataset)
        self.objective = build_objective(self.config, device, self.config.seed)
        self.objective.load_state_dict(tensors)

    def parts(self) -> Iterator[Part]:
        """Compute every micro-batch of every rank, forward and backward; sum the gradients."""
        bad = self.recorded.bad
        self.objective.train()
        self.objective.before_step(self._plan.progress(bad.updates))
        for rank in range(self.recorded.world_size):
            env = DistEnv(rank, self._plan.world_size, 0, 1, self._device)
            with build_loader(self.config, self._dataset, self._plan, env, _FORGIVING) as loader:
                batches = loader.batches(range(bad.step, bad.step + 1))
                for micro, batch in enumerate(batches):
                    yield self._part(batch, rank, micro)

    def _part(self, batch: MicroBatch, rank: int, micro: int) -> Part:
        with _FirstNonFinite(self.objective) as watch:
            loss = self._loss(batch, rank, micro, backward=True)
        index = batch["index"].tolist()
        samples = []
        if not torch.isfinite(torch.tensor(loss)):
            for row, number in enumerate(index):
                tensors = {name: tensor[row : row + 1] for name, tensor in batch.items()}
                alone = MicroBatch(tensors, task=batch.task, share=batch.share)
                one = self._loss(alone, rank, micro, backward=False)
                if not torch.isfinite(torch.tensor(one)):
                    samples.append(number)
        return Part(rank, micro, index, loss, watch.first, samples)

    def _loss(self, batch: Batch, rank: int, micro: int, backward: bool) -> float:
        bad, scale = self.recorded.bad, self.recorded.bad.loss_scale
        with randomness.micro_batch(self.config.seed, bad.step, micro, rank):
            with reduced_precision(self._device, self.config.train):
                output = self.objective(batch)
            if backward:
                (output.value * scale).backward()
        return float(output.value.detach())

    def bad_gradients(self) -> list[str]:
        """Return the names of the parameters whose summed gradient is not finite."""
        return [
            name
            for name, parameter in self.objective.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]


class _FirstNonFinite:
    """Context that finds the first module of the forward pass with a non-finite output."""

    def __init__(self, module: nn.Module) -> None:
        self.first: str | None = None
        self._module = module
        self._handles: list[Any] = []

    def __enter__(self) -> _FirstNonFinite:
        for name, module in self._module.named_modules():
            if not any(module.children()):
                self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def look(module: nn.Module, arguments: Any, output: Any) -> None:
            is_number = isinstance(output, Tensor) and output.is_floating_point()
            if self.first is None and is_number and not output.isfinite().all():
                self.first = name

        return look
