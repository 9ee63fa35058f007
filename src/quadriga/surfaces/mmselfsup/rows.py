"""What a row of the table of config keys says, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["honoured", "no effect", "refused"]


@dataclass(frozen=True)
class Row:
    """One key or one type of a config, and what becomes of it here."""

    key: str
    """``Type`` for a type, ``Type.key`` for a key of a dict with that type, else the path of the
    key from the top of the file; ``*`` stands for any name."""
    status: Status
    why: str
    """What it sets, why it changes nothing, or what to do instead."""
    only: tuple[Any, ...] | None = None
    """The values that are accepted; others are refused for the reason `why`. None: all."""


def honoured(key: str, why: str, only: tuple[Any, ...] | None = None) -> Row:
    """Return the row of a key that is honoured."""
    return Row(key, "honoured", why, only)


def no_effect(key: str, why: str, only: tuple[Any, ...] | None = None) -> Row:
    """Return the row of a key that is accepted and changes nothing; it is named at the start."""
    return Row(key, "no effect", why, only)


def refused(key: str, why: str, only: tuple[Any, ...] = ()) -> Row:
    """Return the row of a key that is refused, unless its value is one of `only`, or None."""
    return Row(key, "refused", why, only)
