"""Words of the messages about configs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from quadriga.errors import did_you_mean

_LONGEST_NAME, _MOST_NAMES = 100, 500


def suggest(name: object, candidates: Iterable[Any]) -> str:
    """Return the end of a sentence that names what is nearest to a name, or all that there is.

    Long names and many of them are left out, since comparing them takes their square.
    """
    short = (x for x in candidates if isinstance(x, str) and len(x) <= _LONGEST_NAME)
    return did_you_mean(str(name)[:_LONGEST_NAME], islice(short, _MOST_NAMES))


def kind_of(value: object) -> str:
    """Return what a value is, with an article."""
    if isinstance(value, dict):
        return "a group"
    return f"a value of type {type(value).__name__}"
