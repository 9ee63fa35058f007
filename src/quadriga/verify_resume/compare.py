"""The interruptions that `quadriga verify-resume` plans, and its comparison of two runs."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from quadriga.engine.build import make_stream
from quadriga.engine.logs.samples import SampleRead, read_samples
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.randomness import Stream, fold

How = Literal["rank", "launcher", "term"]
"""rank: SIGKILL of one rank; launcher: SIGKILL of the launcher and then, as a scheduler does, of
its remaining children; term: SIGTERM to the launcher, on which the run saves and stops."""

HOWS: tuple[How, ...] = ("rank", "term", "launcher")

_CLOCK = ("_seconds", "_share", "_per_second", "_gib", "mfu")
"""Suffixes of the names of metrics that depend on the clock and the machine."""

EQUAL = "equal"


@dataclass(frozen=True)
class Kill:
    """One interruption."""

    step: int
    """Number of logged steps after which it comes."""
    how: How
    draw: float
    """A number in [0, 1) that selects the rank."""


def plan_kills(seed: int, steps: int, kills: int) -> list[Kill]:
    """Draw the interruptions of a run, at different steps as long as there are enough steps.

    Args:
        seed: Seed of the draws; the same seed gives the same plan.
        steps: Steps of the run, at least 3; no interruption comes after the last two.
        kills: Number of interruptions; each kind comes once before any repeats.

    Returns:
        The interruptions in the order of their steps.
    """
    stream = Stream(fold(seed, "verify resume"))
    free: list[int] = []
    places = []
    for _ in range(kills):
        free = free or list(range(1, steps - 1))
        places.append(free.pop(stream.integer(len(free))))
    hows: list[How] = []
    pool: list[How] = []
    for _ in range(kills):
        pool = pool or list(HOWS)
        hows.append(pool.pop(stream.integer(len(pool))))
    return [
        Kill(step, how, stream.uniform()) for step, how in zip(sorted(places), hows, strict=True)
    ]


@dataclass(frozen=True)
class RunRecord:
    """The results of a finished run that do not depend on the clock."""

    tensors: Mapping[str, str]
    """Name -> SHA-256 of dtype, shape and bits, of every tensor of the last checkpoint."""
    metrics: Sequence[Mapping[str, Any]]
    samples: Sequence[SampleRead]

    def parameters(self) -> dict[str, str]:
        """Return the digests of parameters, buffers and their EMA."""
        return {n: s for n, s in self.tensors.items() if n.startswith(("objective.", "ema."))}

    def optimizer(self) -> dict[str, str]:
        """Return the digests of all other tensors: the optimizer's and the executor's state."""
        own = self.parameters()
        return {name: digest for name, digest in self.tensors.items() if name not in own}


def read_run(work_dir: Path, step: int) -> RunRecord:
    """Read the record of a run that has finished all its `step` steps."""
    tensors = read_tensors(work_dir / "checkpoints" / f"step_{step:08d}")
    lines = (work_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return RunRecord(
        tensors={name: tensor_digest(tensor) for name, tensor in sorted(tensors.items())},
        metrics=[without_clock(json.loads(line)) for line in lines],
        samples=read_samples(work_dir / "samples"),
    )


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint on the CPU, unsharded for every layout."""
    reader = HuggingFaceStorageReader(str(checkpoint))
    state: dict[str, Tensor] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        size, properties = getattr(entry, "size", None), getattr(entry, "properties", None)
        if size is not None and properties is not None:
            state[name] = torch.empty(size, dtype=properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(state, storage_reader=reader, no_dist=True)
    return state


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of the dtype, shape and bits of a CPU tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def without_clock(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of metrics.jsonl without values that depend on the clock and the machine."""
    return {name: value for name, value in record.items() if not name.endswith(_CLOCK)}


def fingerprint(part: Any) -> str:
    """Return one SHA-256 over a part of a `RunRecord`."""
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Comparison:
    """The comparison of two runs: for each part ``equal``, or the first difference."""

    parameters: str
    optimizer: str
    metrics: str
    samples: str


def compare(first: RunRecord, second: RunRecord) -> Comparison:
    """Compare two runs bit by bit."""
    return Comparison(
        parameters=_first_name(first.parameters(), second.parameters()),
        optimizer=_first_name(first.optimizer(), second.optimizer()),
        metrics=_metrics_difference(first.metrics, second.metrics),
        samples=samples_difference(first.samples, second.samples),
    )


def _first_name(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    names = sorted(set(first) | set(second))
    different = [name for name in names if first.get(name) != second.get(name)]
    if not different:
        return EQUAL
    return f"DIFFERENT: {different[0]} and {len(different) - 1} more of {len(names)}"


def _metrics_difference(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> str:
    for one, other in zip(first, second, strict=False):
        # Compared as text, since NaN equals itself as text.
        for name in sorted(set(one) | set(other)):
            if json.dumps(one.get(name)) != json.dumps(other.get(name)):
                return f"DIFFERENT: {name} at step {one.get('step')}"
    if len(first) != len(second):
        return f"DIFFERENT: {len(first)} and {len(second)} steps are logged"
    return EQUAL


def samples_difference(first: Sequence[SampleRead], second: Sequence[SampleRead]) -> str:
    """Return ``equal``, or the first difference of two streams of samples."""
    for one, other in zip(first, second, strict=False):
        if one != other:
            return f"DIFFERENT: step {one.step}, sample {one.position} of the batch"
    if len(first) != len(second):
        return f"DIFFERENT: {len(first)} and {len(second)} samples were read"
    return EQUAL


def planned_samples(config: RunConfig, plan: RunPlan, steps: int) -> list[tuple[int, int, int]]:
    """Return (step, position, randomness key) of every sample that a run will read."""
    stream = make_stream(config, plan)
    return [
        (step + 1, position, key)
        for step in range(steps)
        for part in stream.parts(step)
        for position, key in zip(part.places, part.key.tolist(), strict=True)
    ]


def greatest_difference(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[float, str]:
    """Return the largest difference between two tensors of one name, and that name.

    The difference is the maximum over the elements, relative to the tensor's largest absolute
    value; (0.0, "") if all are equal. The largest is often of a tensor whose true gradient is zero
    (the bias of the keys in attention): there, an optimizer that divides by the gradient's size
    turns rounding errors into full steps.

    Raises:
        KeyError: `second` lacks a name of `first`.
    """
    greatest = (0.0, "")
    for name, tensor in first.items():
        one, other = tensor.to(torch.float64), second[name].to(torch.float64)
        if one.numel() and not torch.equal(one, other):
            scale = max(float(one.abs().max()), float(other.abs().max()))
            greatest = max(greatest, (float((one - other).abs().max()) / scale, name))
    return greatest
