"""Which `tar` shards a pattern names, and which split a shard is of by its own name."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from quadriga.data.images.scan import Skipped
from quadriga.errors import UserError

_HELD_OUT = ("val", "valid", "validation", "test", "eval", "dev")
"""Words in a shard's name that make it a test shard unless patterns say what it is."""


def shards_by_name(
    root: Path, named: list[Path] | None, skipped: Skipped
) -> tuple[list[Path], list[Path]]:
    """Return the training and the test shards of a folder by the words in their names.

    Args:
        root: The folder.
        named: The test shards, where the config names them.
        skipped: Gets the shards that are neither.

    Raises:
        UserError: There are no training shards.
    """
    by_word: dict[str, list[Path]] = {}
    for path in find_shards(root, "*.tar", "data.shards"):
        words = re.findall("[a-z]+", path.stem.lower())
        held_out = "" if "train" in words else next((w for w in words if w in _HELD_OUT), "")
        if named is None or path not in named:
            by_word.setdefault(held_out, []).append(path)
    train = by_word.pop("", [])
    if not train:
        raise UserError(
            f"data.shards must be set, since every shard in {root} is a test shard by its name, "
            f"such as {next(iter(by_word.values()), named or [root])[0].name}; name those to "
            "train on with data.shards='NAME-*.tar'"
        )
    word = next((word for word in _HELD_OUT if word in by_word), "")
    test = named if named is not None else by_word.pop(word, [])
    for others in by_word.values():
        skipped.add("test shards by their name", others[0].name, len(others))
    return train, test


def find_shards(root: Path, pattern: str, key: str) -> list[Path]:
    """Return the shards that a pattern names, in order.

    Args:
        root: The folder the pattern is relative to.
        pattern: May hold ``*``, ``?`` and ``{000..146}`` or ``{a,b}``.
        key: The config path of the pattern, for the sentence.

    Raises:
        UserError: There are none, or one that braces name is missing.
    """
    found: list[Path] = []
    for part in expand_braces(pattern):
        if any(mark in part for mark in "*?["):
            found += [root / name for name in sorted(glob.glob(part, root_dir=root))]
        elif (root / part).is_file():
            found.append(root / part)
        else:
            raise UserError(f"{key}: the shard {root / part} does not exist; check {key}")
    if not found:
        raise UserError(f"{key} must name tar files, but nothing in {root} matches {pattern!r}")
    return list(dict.fromkeys(found))


def expand_braces(pattern: str) -> list[str]:
    """Expand ``{000..146}`` (numbers, keeping leading zeros) and ``{a,b}`` as a shell does."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, items = match.groups()
    if items is not None:
        values = items.split(",")
    else:
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if first[0] == "0" or last[0] == "0" else 0
        values = [f"{i:0{width}d}" for i in range(int(first), int(last) + step, step)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + value + rest for value in values for rest in expand_braces(tail)]
