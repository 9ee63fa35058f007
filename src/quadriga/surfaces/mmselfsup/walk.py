"""Compares a config with the table: what is unknown or refused, and what has no effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quadriga.errors import UserError, did_you_mean, nearest
from quadriga.surfaces.mmselfsup.methods import METHODS, NOT_BUILT
from quadriga.surfaces.mmselfsup.rows import Row
from quadriga.surfaces.mmselfsup.table import (
    DEFAULT_TYPES,
    LIKE,
    OLD,
    SCOPES,
    TABLE,
    TOP,
)

_TOP = frozenset(row.key for row in TOP)


def plain(node: Any) -> Any:
    """Return a config with types without their scope: ``mmcls.ImageNet`` is ``ImageNet``."""
    if isinstance(node, Mapping):
        found = {key: plain(value) for key, value in node.items()}
        if isinstance(found.get("type"), str):
            scope, dot, name = found["type"].rpartition(".")
            found["type"] = name if dot and scope in SCOPES else found["type"]
        return found
    if isinstance(node, list | tuple):
        return [plain(item) for item in node]
    return node


def check(config: Mapping[str, Any]) -> list[str]:
    """Check a config, and return the paths of its keys that have no effect.

    A value that is the only accepted one is what the engine does; it is not among them.

    Args:
        config: The config with plain types (`plain`), and with the command line's options.

    Raises:
        UserError: The config is of 0.x, of a method that is not built, or has a key, a type or a
            value that is unknown or refused.
    """
    _check_kind(config)
    idle: list[str] = []
    for key, value in config.items():
        if key in _TOP:
            _visit(TABLE[key], value, key, key, idle)
    return idle


def names_of_its_own(config: Mapping[str, Any]) -> list[str]:
    """Return the names at the top of a config that are no keys, such as ``train_pipeline``."""
    return [key for key in config if key not in _TOP]


def check_options(config: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Check that options of the command line set keys, and not names of the file's own.

    Such a name is read before the options are: ``optimizer`` has no effect where
    ``optim_wrapper.optimizer`` has been made of it.

    Args:
        config: The config.
        paths: The dotted paths of the options.

    Raises:
        UserError: An option reaches nothing.
    """
    known = [path for key in config if key in _TOP for path in _paths(config[key], key)]
    for path in paths:
        top = path.partition(".")[0]
        if top in _TOP:
            continue
        parts = path.split(".")
        tails = (".".join(parts[place:]) for place in range(len(parts)))
        found = [p for tail in tails if tail for p in known if p.endswith(f".{tail}")]
        near = found[0] if found else nearest(path, (*known, *_TOP))
        hint = f"; did you mean {near}?" if near else "; see docs/mmselfsup_keys.md"
        raise UserError(f"--cfg-options {path} reaches nothing{hint}")


def _check_kind(config: Mapping[str, Any]) -> None:
    model = config.get("model")
    if not isinstance(model, Mapping) or "type" not in model:
        raise UserError("the config must have model=dict(type=...), but has none; set model.type")
    row = TABLE.get(model["type"])
    known = (*METHODS, *NOT_BUILT)
    if row is None:
        hint = did_you_mean(str(model["type"]), known)
        raise UserError(f"model.type must be a method, but is {model['type']}{hint}")
    if row.status == "refused":
        raise UserError(f"model.type {model['type']} is refused: {row.why}")
    old = [key for key in OLD if key in config]
    if old and "train_dataloader" not in config:
        raise UserError(
            f"{old[0]} is a key of configs of mmselfsup 0.x, which are refused; name the file of "
            "1.x below configs/selfsup"
        )


def _visit(row: Row, value: Any, path: str, where: str, idle: list[str]) -> None:
    """Check one value.

    Args:
        row: Its row.
        value: The value.
        path: Its path, for messages.
        where: What keys below it have before them in the table.
        idle: Gets the paths without effect.
    """
    if value is None:
        return
    accepted = row.only is None or any(_same(value, allowed) for allowed in row.only)
    if not accepted:
        if row.status == "refused":
            raise UserError(f"{path} is refused: {row.why}; remove it, or set it to None")
        allowed = " or ".join(map(str, row.only or ()))
        raise UserError(f"{path} must be {allowed}, but is {value}: {row.why}")
    if row.status == "no effect" and row.only is None:
        idle.append(path)
    if row.status != "honoured":
        return
    for own, item in _dicts(value, path):
        _visit_dict(item, own, where, idle)


def _dicts(value: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the path of each dict in a value, which may be in lists of lists, and the dict."""
    if isinstance(value, Mapping):
        yield path, value
    for place, item in enumerate(value if isinstance(value, list) else ()):
        yield from _dicts(item, f"{path}.{place}")


def _visit_dict(node: Mapping[str, Any], path: str, where: str, idle: list[str]) -> None:
    kind = type_of(node, path)
    if kind is not None:
        row = TABLE.get(kind)
        if row is None:
            raise UserError(
                f"{path}.type {kind} is not known{did_you_mean(kind, _types())}; see "
                "docs/mmselfsup_keys.md"
            )
        if row.status == "refused":
            raise UserError(f"{path}.type {kind} is refused: {row.why}")
        if row.status == "no effect":
            idle.append(f"{path} ({kind})")
        where = kind
        # A type without effect is named once, and not again with each of its keys.
        idle = [] if row.status == "no effect" else idle
    for key, value in node.items():
        if key == "_scope_" or (key == "type" and kind is not None):
            continue
        row = _row(where, key)
        if row is None:
            valid = list(_keys(where))
            raise UserError(
                f"{path}.{key} is not known{did_you_mean(key, valid)}; see docs/mmselfsup_keys.md"
            )
        _visit(row, value, f"{path}.{key}", row.key, idle)


def type_of(node: Mapping[str, Any], path: str) -> str | None:
    """Return the type of a dict: its own, or that of its place; None for a plain dict."""
    if "type" in node:
        # clip_grad has a key of that name.
        return None if path.endswith("clip_grad") else str(node["type"])
    if path == "train_cfg":
        by_epoch = node.get("by_epoch", "max_iters" not in node)
        return "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"
    return DEFAULT_TYPES.get(path.rpartition(".")[2])


def _row(where: str, key: str) -> Row | None:
    top = where.partition(".")[0]
    for before in (where, LIKE.get(top, top) + where.removeprefix(top)):
        for name in (key, "*"):
            if f"{before}.{name}" in TABLE:
                return TABLE[f"{before}.{name}"]
    return None


def _keys(where: str) -> Iterator[str]:
    top = where.partition(".")[0]
    for before in (where, LIKE.get(top, top) + where.removeprefix(top)):
        for key in TABLE:
            if key.startswith(f"{before}."):
                yield key[len(before) + 1 :].partition(".")[0]


def _types() -> list[str]:
    return [key for key in TABLE if "." not in key and key not in _TOP]


def _paths(node: Any, path: str) -> Iterator[str]:
    yield path
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        yield from _paths(value, f"{path}.{key}")


def _same(value: Any, allowed: Any) -> bool:
    return type(value) is type(allowed) and value == allowed
