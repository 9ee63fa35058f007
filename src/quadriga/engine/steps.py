"""Steps as a user writes them: ``5`` or ``10-14``."""

from __future__ import annotations

import re

WARMUP = 3
"""Steps before the first profiled one when only a number is given: the first steps of a run
compile, allocate and fill caches."""


def profiled_steps(text: str, start: int) -> range | None:
    """Return the steps, counted from 1 as in metrics.jsonl, that a text means.

    Args:
        text: ``5`` (so many, after `WARMUP`) or ``10-14`` (these, the last one too).
        start: Steps that are already made.

    Returns:
        The steps; None when the text means none.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})(?:-([1-9][0-9]{0,8}))?", text)
    if found is None:
        return None
    if found[2] is None:
        first = start + WARMUP + 1
        return range(first, first + int(found[1]))
    return range(int(found[1]), int(found[2]) + 1) or None
