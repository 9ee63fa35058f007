"""Modules that start from another objective's weights: what they share, and what they do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import nn

from quadriga.weights.fit import Content


@runtime_checkable
class StartsFromOther(Protocol):
    """A module whose weights may come from one that was trained for something else.

    Each part is a beginning of names, such as ``classifier.``.
    """

    new_parts: tuple[str, ...]
    """Parts of the module that are never filled: what a file has under such a name belongs to
    another task."""
    optional_parts: tuple[str, ...]
    """Parts of the module that keep their values where a file has nothing of them at all."""


def drop_parts(content: Content, module: nn.Module) -> None:
    """Take what is never filled out of a file's content; it counts as left out."""
    if not isinstance(module, StartsFromOther):
        return
    for name in [name for name in content.tensors if name.startswith(module.new_parts)]:
        content.left_out.append(content.sources[name])
        del content.tensors[name]


def fresh_names(names: Iterable[str], content: Content, module: nn.Module) -> tuple[str, ...]:
    """Return which of a module's tensors keep their values because they are to.

    Args:
        names: The module's tensors.
        content: The file's, after `drop_parts`.
        module: The module.
    """
    if not isinstance(module, StartsFromOther):
        return ()
    absent = [
        part
        for part in module.optional_parts
        if not any(name.startswith(part) for name in content.tensors)
    ]
    return tuple(name for name in names if name.startswith((*module.new_parts, *absent)))
