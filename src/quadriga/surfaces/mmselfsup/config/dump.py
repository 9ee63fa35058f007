"""A resolved config as the text of a Python config."""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping
from typing import Any

from quadriga.errors import UserError

_WIDTH = 79
_INDENT = "    "


def dump_config(config: Mapping[str, Any]) -> str:
    """Return the text of a config file without base files, which reads as the same values.

    Args:
        config: A resolved config.

    Raises:
        UserError: A key at the top cannot be a name of Python.
    """
    # A key named dict would take the name of the function.
    names = "dict" not in config
    lines = []
    for key, value in config.items():
        if not _is_name(key) or key == "_base_":
            raise UserError(
                f"{key!r} cannot be a name at the top of a Python config; rename the key"
            )
        lines.append(f"{key} = {_text(value, len(key) + 3, '', names)}\n")
    return "".join(lines)


def _is_name(key: Any) -> bool:
    return (
        isinstance(key, str)
        and key.isascii()
        and key.isidentifier()
        and not keyword.iskeyword(key)
        and not key.startswith("__")
    )


def _text(value: Any, column: int, indent: str, names: bool) -> str:
    """Return a value on one line where it fits beside what stands before it, else on several."""
    if not isinstance(value, (Mapping, list, tuple)):
        return _scalar(value)
    opening, closing, items = _parts(value, names)
    deeper = indent + _INDENT
    if not any(isinstance(item, Mapping) and item for _, item in items) or len(items) == 1:
        texts = [before + _text(item, 0, deeper, names) for before, item in items]
        comma = "," if isinstance(value, tuple) and len(texts) == 1 else ""
        line = opening + ", ".join(texts) + comma + closing
        if "\n" not in line and column + len(indent) + len(line) < _WIDTH:
            return line
    texts = [
        f"{deeper}{before}{_text(item, len(before), deeper, names)},\n" for before, item in items
    ]
    return f"{opening}\n{''.join(texts)}{indent}{closing}"


def _parts(value: Any, names: bool) -> tuple[str, str, list[tuple[str, Any]]]:
    if not isinstance(value, Mapping):
        opening, closing = "[]" if isinstance(value, list) else "()"
        return opening, closing, [("", item) for item in value]
    if names and all(map(_is_name, value)):
        return "dict(", ")", [(f"{key}=", item) for key, item in value.items()]
    return "{", "}", [(f"{_key(key)}: ", item) for key, item in value.items()]


def _key(key: Any) -> str:
    if isinstance(key, tuple):
        return f"({''.join(f'{_key(item)}, ' for item in key)})"
    return _scalar(key)


def _scalar(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    if isinstance(value, float) and math.isnan(value):
        return "float('nan')"
    # Two braces in a row would be read as a template.
    return repr(value).replace("{{", r"{\x7b") if isinstance(value, str) else repr(value)
