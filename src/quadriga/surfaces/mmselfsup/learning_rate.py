"""The batch that a config's learning rate is meant for, and whether the rate is scaled from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quadriga.config.base import within

_BATCH = re.compile(r"(?:^|[_-])(\d+)xb(\d+)(?=[_-]|$)")
_ACCUMULATED = re.compile(r"-accum(\d+)(?=[_-]|$)")

LR = "optim_wrapper.optimizer.lr"


class Record(NamedTuple):
    """The batch of record; None where the rate stays as it is."""

    batch: int | None
    why: str
    """One line that says where it is from, or why there is none."""


def batch_of_name(name: str) -> int | None:
    """Return the batch in a config's name, ``8xb32-accum16``: GPUs, images of each, iterations."""
    found, times = _BATCH.search(name), _ACCUMULATED.search(name)
    if found is None:
        return None
    return int(found[1]) * int(found[2]) * (int(times[1]) if times else 1)


def record_of(
    name: str, config: Mapping[str, Any], options: Sequence[str], shipped: float | None
) -> Record:
    """Return the batch of record of a config's learning rate.

    Args:
        name: Name of the config's file without its ending.
        config: The config.
        options: Paths that the command line set.
        shipped: The rate of the file of this name that comes with this package; None: there is
            none.
    """
    lr = config["optim_wrapper"]["optimizer"]["lr"]
    if any(within(LR, path) for path in options):
        return Record(None, f"lr {lr:.4g} is given on the command line and stays as it is")
    if shipped is not None and lr != shipped:
        return Record(
            None, f"lr {lr:.4g} is the config's own (not {shipped:.4g}) and stays as it is"
        )
    batch = batch_of_name(name)
    if batch is not None:
        return Record(batch, f"batch of record: {batch}, from the name {name}")
    batch = (config.get("auto_scale_lr") or {}).get("base_batch_size")
    if batch is not None:
        return Record(int(batch), f"batch of record: {batch}, from auto_scale_lr.base_batch_size")
    return Record(
        None,
        f"lr {lr:.4g} stays as it is: neither the name {name} (8xb512) nor auto_scale_lr."
        "base_batch_size says which batch it is meant for",
    )


def shipped_lr(path: Path | None, read: Any) -> float | None:
    """Return the learning rate of a config that comes with this package; None without one.

    Args:
        path: The file.
        read: Reads a config.
    """
    if path is None:
        return None
    return float(read(path)["optim_wrapper"]["optimizer"]["lr"])
