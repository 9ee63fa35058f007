"""The values that a config holds while it is read, and their plain form afterwards."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quadriga.surfaces.mmselfsup.config.budget import MOST_LEVELS, Budget, check_size
from quadriga.surfaces.mmselfsup.config.templates import BaseValue
from quadriga.surfaces.mmselfsup.config.words import kind_of

TYPE = "type"
SCOPE = "_scope_"
DELETE = "_delete_"
SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class ImportedName:
    """A class or function that a config imports: nothing is imported, the name alone counts."""

    dotted: str

    def __str__(self) -> str:
        return self.dotted


class Inherited(dict[Any, Any]):
    """A group that comes from a base file.

    Its `update` merges groups into groups, unlike that of a group made in the same file, and
    what is put into it is copied; configs rely on both.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, inherit(value))

    def update(self, *others: Any, **values: Any) -> None:
        """Merge a mapping and keywords: groups into groups, everything else is replaced."""
        for key, value in dict(*others, **values).items():
            mine = self.get(key)
            if isinstance(mine, dict) and isinstance(value, dict):
                mine.update(value)
            else:
                self[key] = value

    def merge(self, other: Mapping[Any, Any]) -> None:
        """Merge a mapping; one with ``_delete_=True`` takes a group's place."""
        merged = _merged(copy.deepcopy(other), copy.deepcopy(self))
        self.clear()
        self.update(merged)

    def copy(self) -> Inherited:
        """Return a shallow copy that is a group of the same kind."""
        return Inherited(self)

    def pop(self, key: Any, default: Any = None) -> Any:
        """Take a value out; a missing one is the default."""
        return super().pop(key, default)


def _merged(new: Any, old: Any) -> Any:
    if not isinstance(new, dict):
        return new
    replaces = new.pop(DELETE, False)
    if not isinstance(old, dict):
        return new
    merged = {} if replaces else dict(old)
    for key, value in new.items():
        merged[key] = _merged(value, merged.get(key))
    return merged


def inherit(value: Any, scope: str | None = None) -> Any:
    """Return a copy in which every group is `Inherited`.

    Args:
        value: A value of a config.
        scope: Name of the package that the value comes from; the outermost groups with a
            ``type`` get it as ``_scope_``, since the type is one of that package.
    """
    if isinstance(value, dict):
        group = Inherited()
        if scope is not None and TYPE in value:
            if value.get(SCOPE) is None:
                value = {**value, SCOPE: scope}
            scope = None
        for key, item in value.items():
            dict.__setitem__(group, key, inherit(item, scope))
        return group
    if isinstance(value, (list, tuple)):
        return type(value)(inherit(item, scope) for item in value)
    return value


def untangle(value: Any, swaps: Mapping[str, Any], budget: Budget, levels: int = 0) -> Any:
    """Return a copy of plain groups, lists and tuples, none of which lies in two places.

    Args:
        value: A value of a config.
        swaps: Mark of a base value -> the value that takes its place.
        budget: What the copy may cost.
        levels: Groups and lists that it lies in.

    Raises:
        ValueError: It is too deep or too large, or is of a kind that no config holds.
    """
    budget.spend()
    if levels > MOST_LEVELS:
        raise ValueError(f"values lie in more than {MOST_LEVELS} groups and lists")
    if isinstance(value, BaseValue):
        value = value.mark
    if isinstance(value, dict):
        return {_key(k, swaps): untangle(v, swaps, budget, levels + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(untangle(item, swaps, budget, levels + 1) for item in value)
    if isinstance(value, str) and value in swaps:
        return untangle(swaps[value], {}, budget, levels)
    if not isinstance(value, (*SCALARS, ImportedName)):
        raise ValueError(f"{kind_of(value)} has no place in a config")
    return _whole(value, swaps)


def _key(key: Any, swaps: Mapping[str, Any]) -> Any:
    if isinstance(key, tuple):
        return tuple(_key(item, swaps) for item in key)
    if not isinstance(key, SCALARS):
        raise ValueError(f"a key of type {type(key).__name__} has no place in a config")
    return _whole(key, swaps)


def _whole(value: Any, swaps: Mapping[str, Any]) -> Any:
    check_size(value)
    if isinstance(value, str) and any(mark in value for mark in swaps):
        raise ValueError("{{_base_...}} is a whole value; write it without quotes")
    return value


def with_plain_names(value: Any, key: Any = None) -> Any:
    """Return a copy with imported names as strings: of a ``type`` the last word, else all."""
    if isinstance(value, dict):
        return {k: with_plain_names(v, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(with_plain_names(item) for item in value)
    if isinstance(value, ImportedName):
        return value.dotted.rpartition(".")[2] if key == TYPE else value.dotted
    return value
