"""Pure functions on the plain tree of a config: nested dicts, lists and scalars."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quadriga.errors import UserError


def leaves_of(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield each dotted path with its value; a list of groups is walked by position.

    Args:
        tree: The plain tree.
        prefix: Path of the tree's root.
    """
    if isinstance(tree, dict) and tree:
        items = tree.items()
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        items = {str(i): item for i, item in enumerate(tree)}.items()
    else:
        yield prefix, tree
        return
    for name, value in items:
        yield from leaves_of(value, f"{prefix}.{name}" if prefix else name)


def within(path: str, ancestor: str) -> bool:
    """Return whether `path` is `ancestor` or below it."""
    return path == ancestor or path.startswith(f"{ancestor}.")


def child_of(node: Any, part: str, path: str) -> Any:
    """Return the node below `node`, made empty where it is absent or None.

    Raises:
        UserError: There is a single value at that place, or the position does not exist.
    """
    if isinstance(node, list):
        return node[position_in(node, part, path)]
    if node.get(part) is None:
        node[part] = {}
    if not isinstance(node[part], (dict, list)):
        raise UserError(f"{path} is a single value, {node[part]!r}, and has no keys below it")
    return node[part]


def position_in(items: list[Any], part: str, path: str) -> int:
    """Return `part` as a position in `items`.

    Raises:
        UserError: It is not a number, or outside the list.
    """
    if not part.isdecimal() or int(part) >= len(items):
        raise UserError(f"{path} must end in a position from 0 to {len(items) - 1}")
    return int(part)
