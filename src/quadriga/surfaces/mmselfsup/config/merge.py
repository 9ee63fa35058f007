"""How a config's groups lie over those of its base files."""

from __future__ import annotations

from typing import Any

from quadriga.surfaces.mmselfsup.config.values import DELETE
from quadriga.surfaces.mmselfsup.config.words import kind_of, suggest


def merge(child: dict[Any, Any], base: Any, in_lists: bool = False, at: str = "") -> Any:
    """Return a base value with a child's group laid over it.

    Groups are merged key by key; everything else, lists too, takes the base's place. A group
    with ``_delete_=True`` takes it as well.

    Args:
        child: The group that wins.
        base: The group, or with `in_lists` list, that it is laid over; it stays as it is.
        in_lists: Whether keys of digits are positions of a list in the base.
        at: Path of both, for messages.

    Raises:
        ValueError: A group lies over something that is none, or a position is out of range.
    """
    merged = base.copy()
    for key, value in child.items():
        where = f"{at}.{key}" if at else str(key)
        if isinstance(merged, list):
            position = _position(key, merged, where)
            old = merged[position]
            merged[position] = _laid_over(value, old, in_lists, where)
        elif key in merged:
            merged[key] = _laid_over(value, merged[key], in_lists, where)
        else:
            merged[key] = value
    return merged


def _laid_over(value: Any, old: Any, in_lists: bool, where: str) -> Any:
    if not isinstance(value, dict):
        return value
    if value.get(DELETE):
        return {key: item for key, item in value.items() if key != DELETE}
    # The key is spent, whatever it says, wherever there was something to delete.
    value = {key: item for key, item in value.items() if key != DELETE}
    if not isinstance(old, (dict, list) if in_lists else dict):
        raise ValueError(
            f"{where} is a group here but {kind_of(old)} in what it "
            f"inherits from; add {DELETE}=True to the group to replace it"
        )
    return merge(value, old, in_lists, where)


def _position(key: str, values: list[Any], where: str) -> int:
    known = [where.removesuffix(key) + str(index) for index in range(len(values))]
    if not key.isdecimal() or len(key) > 9 or int(key) >= len(values):
        raise ValueError(f"{where} is no element of a list of {len(values)}{suggest(where, known)}")
    return int(key)
