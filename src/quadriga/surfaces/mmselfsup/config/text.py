"""Strings made from values in a config: f-strings, ``.format`` and ``%``, of scalars alone."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quadriga.surfaces.mmselfsup.config.budget import MOST_CHARACTERS, check_size
from quadriga.surfaces.mmselfsup.config.values import SCALARS, ImportedName
from quadriga.surfaces.mmselfsup.config.words import kind_of

_SPEC = re.compile(r"([^{}]?[<>=^])?[-+ ]?#?0?\d{0,3}[,_]?(\.\d{1,3})?[bcdeEfFgGosxX%]?")
_PERCENT = re.compile(r"%(?:\((\w+)\))?([-+ 0#]*\d{0,3}(?:\.\d{1,3})?[diouxXeEfFgGsr])|%%|%")
_CONVERSIONS: Mapping[str | None, Callable[[Any], Any]] = {
    None: lambda value: value,
    "s": str,
    "r": repr,
    "a": ascii,
}


def scalar_text(value: Any, conversion: str | None = None, spec: str = "") -> str:
    """Return the text of a scalar, as an f-string writes it.

    Args:
        value: A scalar or an imported name.
        conversion: ``s``, ``r``, ``a`` or None.
        spec: What stands after the colon.

    Raises:
        ValueError: It is no scalar, or the rule of its format is not a simple one.
    """
    if isinstance(value, ImportedName):
        value = value.dotted
    if not isinstance(value, SCALARS):
        raise ValueError(f"{kind_of(value)} cannot be made part of a string")
    if _SPEC.fullmatch(spec) is None:
        raise ValueError(f"the format {spec!r} is not read; write the text out")
    return format(_CONVERSIONS[conversion](value), spec)


def format_text(template: str, values: Sequence[Any], named: Mapping[str, Any]) -> str:
    """Return ``template.format(*values, **named)`` for fields that are names or numbers.

    Raises:
        ValueError: A field is anything else, or the result is too long.
        KeyError: There is no such value.
        IndexError: There are too few values.
    """
    parts: list[str] = []
    length = taken = 0
    for literal, field, spec, conversion in string.Formatter().parse(template):
        part = literal
        if field is not None:
            if field and not field.isidentifier() and not field.isdecimal():
                raise ValueError(f"the field {field!r} is not read; write the text out")
            key = field or str(taken)
            taken += not field
            value = values[int(key)] if key.isdecimal() else named[key]
            part += scalar_text(value, conversion, spec or "")
        parts.append(part)
        length += len(part)
        if length > MOST_CHARACTERS:
            raise ValueError(f"the text is longer than {MOST_CHARACTERS} characters")
    return "".join(parts)


def percent_format(template: str, values: Any) -> str:
    """Return ``template % values`` for scalars.

    Raises:
        ValueError: A rule of the template or a value is not a simple one.
        TypeError: The values do not fit the template.
        KeyError: There is no such value.
    """
    for found in _PERCENT.finditer(template):
        if found[0] == "%":
            raise ValueError("this use of % in a string is not read; write the text out")
    each = values.values() if isinstance(values, dict) else values
    for value in each if isinstance(values, (dict, tuple)) else (values,):
        if not isinstance(value, SCALARS):
            raise ValueError(f"{kind_of(value)} cannot be made part of a string")
    text: str = template % values
    check_size(text)
    return text
