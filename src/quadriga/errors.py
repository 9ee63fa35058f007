"""The errors a user can cause, and the sentences they are told in."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

EXIT_USER_ERROR = 2
"""Exit code of every error that the user can mend."""

EXIT_HANG = 70
"""Exit code of a run that stood still: the message names the rank (EX_SOFTWARE of sysexits.h)."""

EXIT_PREEMPTED = 75
"""Exit code of a run that a signal asked to stop: it has saved, and goes on with ``--resume``
(EX_TEMPFAIL of sysexits.h: try again). A scheduler requeues on it."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT, as a shell has it."""


class UserError(Exception):
    """A mistake the user can mend: shown as one line ``error: ...``, exit code 2, no traceback.

    The message says what, the rule, the actual value and the remedy.
    """

    on_every_rank = False
    """Whether every rank raises the same error, so that rank 0 alone shows it."""


@contextlib.contextmanager
def keys_at(paths: Mapping[str, str]) -> Iterator[None]:
    """Return a context in which errors name the keys of a config that is part of another.

    Args:
        paths: Group of keys -> where it is in the whole: with ``data`` at ``data.of``,
            ``data.root`` is told as ``data.of.root``.
    """
    try:
        yield
    except UserError as error:
        groups = "|".join(map(re.escape, paths))
        # Keys of tasks are told as they are in the whole already.
        keys = rf"(?<![\w.])({groups})(?=\.(?!tasks\b)[a-z])"
        renamed = UserError(re.sub(keys, lambda found: paths[found[1]], str(error)))
        renamed.on_every_rank = error.on_every_rank
        raise renamed from error


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate most like `name`, or None when nothing is near.

    Abbreviations count as near: ``optim.learning_rate`` finds ``optim.lr`` by its initials.

    Args:
        name: What the user typed; may be a dotted path.
        candidates: The valid names, in the same form.

    Returns:
        The nearest candidate, or None.
    """
    names = list(dict.fromkeys(candidates))
    parent, _, leaf = name.rpartition(".")
    initials = "".join(word[0] for word in leaf.split("_") if word)
    by_initials = f"{parent}.{initials}" if parent else initials
    if len(initials) > 1 and by_initials in names:
        return by_initials
    same_leaf = [candidate for candidate in names if candidate.rpartition(".")[2] == leaf]
    if len(same_leaf) == 1:
        return same_leaf[0]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return close[0] if close else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ``; did you mean X?``, or the valid names when nothing is near.

    Args:
        name: What the user typed.
        candidates: The valid names.

    Returns:
        The end of an error sentence, starting with a semicolon; empty without candidates.
    """
    names = sorted(set(candidates))
    found = nearest(name, names)
    if found is not None:
        return f"; did you mean {found}?"
    return f"; valid are: {', '.join(names)}" if names else ""
