"""Prefixes that training code of others puts before the names of a model's tensors.

A file may hold a model as ``module.backbone.cls_token``, or a teacher and a student. The tensors
under one prefix are taken, under their names without it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from quadriga.errors import UserError

_PREFERRED = ("teacher", "ema", "target", "student", "online", "base_encoder", "encoder_q")
"""Words of a prefix, the best first, for files with several models: a teacher is a moving average
of its student, and the better encoder."""
_MOST_PARTS = 6


class Taken(NamedTuple):
    """The tensors of a file that a module gets."""

    tensors: Mapping[str, Tensor]
    """Name without the prefix -> tensor."""
    prefix: str
    """Empty if nothing was removed."""
    rest: tuple[str, ...]
    """The file's names of all other tensors."""


def prefixes_of(names: Iterable[str], marker: str) -> list[str]:
    """Return what stands before `marker` in the names that end with it, the shortest first."""
    found = {
        name[: -len(marker)] for name in names if name == marker or name.endswith(f".{marker}")
    }
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def prefixes_before(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Return the prefixes before the most names of `known`, the shortest first."""
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        for place in range(min(len(parts), _MOST_PARTS)):
            if ".".join(parts[place:]) in known:
                prefix = "".join(f"{part}." for part in parts[:place])
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values(), default=0)
    found = [prefix for prefix, number in counts.items() if number == most]
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def take(raw: Mapping[str, Tensor], prefixes: list[str], path: Path) -> Taken:
    """Take the tensors under the best of some prefixes.

    Raises:
        UserError: None of several prefixes is better than the others.
    """
    lowest = min(map(_rank, prefixes))
    best = [prefix for prefix in dict.fromkeys(prefixes) if _rank(prefix) == lowest]
    if len(best) > 1:
        raise UserError(
            f"{path} holds several models, under {', '.join(best)}: save the one to load alone"
        )
    prefix = best[0]
    return Taken(
        {name.removeprefix(prefix): t for name, t in raw.items() if name.startswith(prefix)},
        prefix,
        tuple(name for name in raw if not name.startswith(prefix)),
    )


def _rank(prefix: str) -> int:
    if not prefix:
        return -1  # a model under its own names
    parts = [f"_{part}_" for part in prefix.split(".")]
    ranks = [i for i, word in enumerate(_PREFERRED) if any(f"_{word}_" in part for part in parts)]
    return min(ranks, default=len(_PREFERRED))
