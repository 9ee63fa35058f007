"""The three parts of a golden run that are compared, and how a difference is told."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Hashed = dict[str, Any]
"""``sha256`` of all and the ``values`` by name: hashes of tensors, or logged numbers."""
PARTS = ("parameters", "optimizer", "metrics")
_CLOCK = re.compile(r"seconds$|_per_second$|(wait|communication|stall)_share$|_gib$|^mfu$")


def hash_tensor(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and bits."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hashed(values: Mapping[str, Any]) -> Hashed:
    """Return named values with the SHA-256 of all of them, names included."""
    text = json.dumps(values, sort_keys=True)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "values": dict(values)}


def summary(tensors: Mapping[str, Tensor], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the three parts of a run from its tensors and the lines of its metrics.jsonl."""
    hashes = {name: hash_tensor(tensors[name]) for name in sorted(tensors)}
    own = {name for name in hashes if name.startswith(("objective.", "ema."))}
    metrics = {
        f"step {record['step']} {name}": value
        for record in records
        for name, value in record.items()
        if not _CLOCK.search(name)
    }
    return {
        "parameters": hashed({name: hashes[name] for name in hashes if name in own}),
        "optimizer": hashed({name: hashes[name] for name in hashes if name not in own}),
        "metrics": hashed(metrics),
    }


def difference(old: Hashed, new: Hashed, distance: Callable[[str], float]) -> str:
    """Return "same", or what differs first and by how much, and how many differ at most how much.

    Args:
        old: What was recorded.
        new: What was found now.
        distance: From the name of a value that both have to how far the two are apart.
    """
    before, after = old["values"], new["values"]
    names = [*before, *(name for name in after if name not in before)]
    apart = [n for n in names if n not in before or n not in after or before[n] != after[n]]
    if not apart:
        return "same"
    first, both = apart[0], [n for n in apart if n in before and n in after]
    if first not in both:
        said = f"{first} is {'missing' if first in before else 'new'}"
    else:
        said = f"{first} by {distance(first):.3g}"
    most = f", at most by {max(map(distance, both)):.3g}" if len(both) > 1 else ""
    return f"{said}; {len(apart)} of {len(names)} differ{most}"


def tensor_distance(old: Mapping[str, Tensor], new: Mapping[str, Tensor], name: str) -> float:
    """Return the greatest difference of two tensors of one name.

    It is infinite for tensors of two shapes, and NaN where `old`, whose file may be gone, lacks
    the tensor.
    """
    if name not in old:
        return math.nan
    if old[name].shape != new[name].shape:
        return math.inf
    return float((old[name].double() - new[name].double()).abs().max())


def compare_runs(
    old: Mapping[str, Hashed],
    new: Mapping[str, Hashed],
    old_tensors: Mapping[str, Tensor],
    new_tensors: Mapping[str, Tensor],
) -> list[str]:
    """Return one cell for each part of a run."""

    def tensors(name: str) -> float:
        return tensor_distance(old_tensors, new_tensors, name)

    def metrics(name: str) -> float:
        return abs(float(new["metrics"]["values"][name]) - float(old["metrics"]["values"][name]))

    return [
        difference(old[part], new[part], metrics if part == "metrics" else tensors)
        for part in PARTS
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (" | ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
