"""Templates in the text of a config: ``{{ fileDirname }}``, ``{{$NAME:default}}`` and the like."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from quadriga.errors import UserError

_MARK = "\ue000"
"""Begins the string that stands for a base value; one of Unicode's characters for private use."""

_MOST_BASE_VALUES = 1000

# The lengths are bounded, since matching takes their square.
_ENVIRONMENT = re.compile(
    r"\{\{['\"]?\s{0,20}\$(\w{1,200})\s{0,20}:\s{0,20}(\S{0,400}?)\s{0,20}['\"]?\}\}"
)
_BASE = re.compile(r"\{\{\s{0,20}_base_\.([\w.]{1,400})\s{0,20}\}\}")


@dataclass(frozen=True, eq=False)
class BaseValue:
    """A value of a base file that a template stands for, until the file has been read."""

    mark: str
    """The string that takes the template's place in the text."""
    path: str
    """Names with dots between them, from the base file's top."""
    line: int

    def __bool__(self) -> bool:
        raise TypeError(f"{{{{_base_.{self.path}}}}} has no value here; write _base_.{self.path}")

    def __eq__(self, other: object) -> bool:
        return bool(self)


def fill_templates(text: str, path: Path, shown: str) -> tuple[str, dict[str, BaseValue]]:
    """Return the text of a config with its templates filled.

    Args:
        text: The text.
        path: The file, absolute.
        shown: Its name in messages.

    Returns:
        The text, in which a base value is a string in quotes, and that string -> the base value.

    Raises:
        UserError: A variable of the environment is not set and has no default, or there are too
            many base values.
    """
    names = {
        "fileDirname": path.parent,
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }
    for name, value in names.items():
        said = str(value).replace("\\", "/")
        text = re.sub(rf"\{{\{{\s*{name}\s*\}}\}}", lambda _, said=said: said, text)  # type: ignore[misc]

    def variable(found: re.Match[str]) -> str:
        value = os.environ.get(found[1], found[2])
        if not value:
            raise UserError(
                f"{shown}:{_line(found)}: the variable {found[1]} of the environment is not set "
                "and has no default; set it"
            )
        return value

    text = _ENVIRONMENT.sub(variable, text)
    values: dict[str, BaseValue] = {}
    start = _MARK
    while start in text:
        start += _MARK

    def base(found: re.Match[str]) -> str:
        if len(values) == _MOST_BASE_VALUES:
            raise UserError(
                f"{shown}:{_line(found)}: more than {_MOST_BASE_VALUES} templates of base values; "
                "write _base_.NAME in a Python config"
            )
        mark = f"{start}{len(values)}"
        values[mark] = BaseValue(mark, found[1], _line(found))
        return f'"{mark}"'

    return _BASE.sub(base, text), values


def _line(found: re.Match[str]) -> int:
    return found.string.count("\n", 0, found.start()) + 1
