"""Turns a pydantic error into one sentence: the key, the rule, the actual value, its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from quadriga.errors import did_you_mean

_TYPES = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer of fewer digits",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list such as [1,2]",
    "dict_type": "a group of keys",
}


def sentence(
    error: Mapping[str, Any], path: str, field: FieldInfo | None, where: str | None
) -> str:
    """Return the sentence for one pydantic error.

    Args:
        error: One entry of `ValidationError.errors()`.
        path: Full dotted path of the value; for a rule between fields, that of their config.
        field: The field the error is about, None for a rule between fields.
        where: Where the value was set, for example "set on the command line"; None if unknown.

    Returns:
        For example ``optim.lr must be at least 0, but is -1 (set on the command line)``.
    """
    kind = error["type"]
    tail = f" ({where})" if where else ""
    if kind == "missing":
        return f"{path} is required and has no default; set it with {path}=..."
    if kind == "value_error":
        # A rule between fields: its message starts with the name of a field of that config.
        return f"{path}.{error['ctx']['error']}{tail}" if path else f"{error['ctx']['error']}{tail}"
    shown = _shown(error["input"])
    if kind == "literal_error":
        expected = [part.strip("' ") for part in _split(error["ctx"]["expected"])]
        hint = did_you_mean(str(error["input"]), expected)
        listed = "" if "valid are" in hint else f" ({' | '.join(expected)})"
        return f"{path} is {shown}, which is not one of its values{listed}{hint}{tail}"
    broken = error.get("ctx", {})
    rule = _TYPES.get(kind) or _bounds(field, broken) or _range_message(broken)
    if rule is None or (kind in ("too_short", "too_long")):
        rule = str(error["msg"])[:1].lower() + str(error["msg"])[1:]
        return f"{path}: {rule}, but is {shown}{tail}"
    return f"{path} must be {rule}, but is {shown}{tail}"


def _shown(value: Any) -> str:
    try:
        return repr(value) if isinstance(value, str) and not _is_number(value) else f"{value}"
    except ValueError:  # Python refuses to write an integer of thousands of digits
        return "a number of thousands of digits"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _split(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(", ")


_SANE = 1000
"""Upper bounds from here on only keep nonsense out, and are said only when they are broken."""


def _bounds(field: FieldInfo | None, broken: Mapping[str, Any]) -> str | None:
    """Return the allowed range of a number in words, from its field's constraints.

    Args:
        field: The field; None if unknown.
        broken: The constraint that the value does not meet.
    """
    limits: dict[str, Any] = {}
    for item in field.metadata if field is not None else []:
        for name in ("gt", "ge", "lt", "le"):
            if getattr(item, name, None) is not None:
                limits[name] = getattr(item, name)
    if limits.get("le", 0) >= _SANE:
        limits = {"le": limits["le"]} if "le" in broken else {**limits, "le": None}
    return _range_message(limits)


def _range_message(limits: Mapping[str, Any]) -> str | None:
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    low = f"above {limits['gt']}" if "gt" in limits else None
    low = f"at least {limits['ge']}" if "ge" in limits else low
    high = f"below {limits['lt']}" if "lt" in limits else None
    high = f"at most {limits['le']}" if "le" in limits else high
    if "ge" in limits and "le" in limits:
        return f"between {limits['ge']} and {limits['le']}"
    return " and ".join(part for part in (low, high) if part) or None
