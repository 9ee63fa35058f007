"""Overrides as ``--cfg-options`` writes them: ``key=value``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from quadriga.errors import UserError, nearest
from quadriga.surfaces.mmselfsup.config.budget import (
    MOST_CHARACTERS,
    MOST_LEVELS,
    Budget,
    check_size,
)
from quadriga.surfaces.mmselfsup.config.merge import merge
from quadriga.surfaces.mmselfsup.config.values import DELETE, untangle
from quadriga.surfaces.mmselfsup.config.words import suggest

_OPENING, _CLOSING = "([", ")]"


def apply_options(config: dict[str, Any], options: Sequence[str]) -> list[str]:
    """Override values of a config, in place.

    A key is a path with dots; a number in it is the position of a list's element. The reference
    adds every path that does not exist. Here the caller, who knows which names mean something,
    decides: added paths are returned. One that leads through a name that does not exist and is
    near one that does is a misspelling, and an error.

    Args:
        config: A resolved config.
        options: ``key=value``; the value is a number, ``true``, ``None``, a string, ``a,b`` or
            ``[a,b]`` (a list) or ``(a,b)`` (a tuple), one within another too.

    Returns:
        The paths that did not exist, in the order of the options.

    Raises:
        UserError: An option cannot be read, or leads nowhere.
    """
    tree: dict[str, Any] = {}
    added: list[str] = []
    for option in options:
        path, equals, text = option.partition("=")
        words = path.split(".")
        if not equals or not all(words) or len(words) > MOST_LEVELS:
            raise UserError(f"--cfg-options {option} must be key=value, such as model.depth=12")
        if not _exists(config, words, option) and words[-1] != DELETE:
            added.append(path)
        group = tree
        for word in words[:-1]:
            group = group.setdefault(word, {})
            if not isinstance(group, dict):
                raise UserError(f"--cfg-options {option} leads through {word}, also overridden")
        group[words[-1]] = _value(text, option)
    try:
        merged = untangle(merge(tree, config, in_lists=True), {}, Budget())
    except ValueError as error:
        raise UserError(f"--cfg-options: {error}") from error
    config.clear()
    config.update(merged)
    return list(dict.fromkeys(added))


def _exists(config: dict[str, Any], words: Sequence[str], option: str) -> bool:
    """Tell whether a path exists; complain of one that leads through something misspelt."""
    holder: Any = config
    for index, word in enumerate(words):
        before = ".".join(words[:index])
        if isinstance(holder, list):
            if not word.isdecimal() or len(word) > 9 or int(word) >= len(holder):
                known = [f"{before}.{position}" for position in range(len(holder))]
                raise UserError(
                    f"--cfg-options {option} reaches nothing: {before} is a list of {len(holder)}"
                    f"{suggest(f'{before}.{word}', known)}"
                )
            holder = holder[int(word)]
        elif not isinstance(holder, dict):
            raise UserError(
                f"--cfg-options {option} reaches nothing: {before} is {holder!r}, no group; "
                f"override {before} itself"
            )
        elif word in holder:
            holder = holder[word]
        else:
            near = nearest(word, (key for key in holder if isinstance(key, str)))
            if near is not None and index < len(words) - 1:
                path = ".".join([*words[:index], near, *words[index + 1 :]])
                raise UserError(
                    f"--cfg-options {option} reaches nothing: there is no "
                    f"{'.'.join(words[: index + 1])}; did you mean {path}?"
                )
            return False
    return True


def _value(text: str, option: str) -> Any:
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"an override of {len(text):,} characters is too long; use a config file")
    try:
        value = _parse(text, 0)
        check_size(value)
        return value
    except ValueError as error:
        raise UserError(f"--cfg-options {option}: {error}") from error


def _parse(text: str, levels: int) -> Any:
    if levels > MOST_LEVELS:
        raise ValueError(f"brackets lie in more than {MOST_LEVELS} others")
    text = text.strip("'\"").replace(" ", "")
    inner = text[1:-1] if _is_wrapped(text) else text
    parts = list(_split(inner))
    if inner is text and len(parts) < 2 and not text.endswith(","):
        return _scalar(text)
    values = [_parse(part, levels + 1) for part in parts]
    return tuple(values) if inner is not text and text[0] == "(" else values


def _split(text: str) -> Iterator[str]:
    """Yield what stands between commas that lie in no bracket; nothing after the last one."""
    start, open_brackets = 0, ""
    for index, character in enumerate(text):
        if character in _OPENING:
            open_brackets += character
        elif character in _CLOSING:
            if not open_brackets or _OPENING[_CLOSING.index(character)] != open_brackets[-1]:
                raise ValueError(f"the brackets of {text} do not match; close each one")
            open_brackets = open_brackets[:-1]
        elif character == "," and not open_brackets:
            yield text[start:index]
            start = index + 1
    if open_brackets:
        raise ValueError(f"the brackets of {text} do not match; close each one")
    if start < len(text):
        yield text[start:]


def _is_wrapped(text: str) -> bool:
    """Tell whether the bracket at the start is closed at the end, and not before."""
    if not (len(text) > 1 and text[0] in _OPENING and text[-1] in _CLOSING):
        return False
    depth = 0
    for index, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return index == len(text) - 1
    return False


def _scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return None if text == "None" else text
