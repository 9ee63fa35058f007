"""Errors that a user can cause and fix, their exit codes, and suggestions for misspelled names."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

EXIT_USER_ERROR = 2
"""Exit code of every error that the user can fix."""

EXIT_HANG = 70
"""Exit code of a hung run: the message names the rank (EX_SOFTWARE of sysexits.h)."""

EXIT_PREEMPTED = 75
"""Exit code of a run that a signal stopped after it saved a checkpoint; it continues with
``--resume`` (EX_TEMPFAIL of sysexits.h: try again). A scheduler can requeue on this code."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 plus the number of SIGINT, the convention of shells."""


class UserError(Exception):
    """A mistake the user can fix: shown as one line ``error: ...``, exit code 2, no traceback.

    The message names the value, the rule, the actual value and the remedy.
    """

    def __init__(self, message: str) -> None:
        """Keep the message as one short line, whatever names, paths and values it quotes."""
        super().__init__(short_line(message))

    on_every_rank = False
    """Whether every rank raises the same error, so that rank 0 alone shows it."""


class MissingData(UserError):
    """The place that data is read from does not exist; a rehearsal may go on without it."""


_LONGEST_WORD, _LONGEST_LINE = 400, 3000
"""Characters; the longest sensible ones are a path in a command, and a list of tensors' shapes."""


def short_line(text: str) -> str:
    """Return a text as one line of printable characters; the middle of what is too long is cut."""
    plain = "".join(map(_printable, text[: 16 * _LONGEST_LINE]))
    words = (_cut(word, _LONGEST_WORD) for word in plain.split(" "))
    return _cut(" ".join(words).strip(), _LONGEST_LINE)


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}...{text[-longest // 4 :]}"


@contextlib.contextmanager
def reading(path: object, kind: str) -> Iterator[None]:
    """Return a context that turns what a file's content can raise into one error with its name.

    Args:
        path: The file.
        kind: What it should be, such as "a whole replay file".

    Raises:
        UserError: The file cannot be read or is damaged.
    """
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise
    # Damaged and hostile bytes make readers raise nearly anything.
    except Exception as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is not {kind}: {reason or type(error).__name__}") from error


@contextlib.contextmanager
def keys_at(paths: Mapping[str, str]) -> Iterator[None]:
    """Return a context that rewrites the keys in error messages to their full paths.

    For a config that is nested in another one and names its keys as if it were the whole.

    Args:
        paths: Group of keys -> its full path: with ``data`` -> ``data.of``, a message about
            ``data.root`` names ``data.of.root``.

    Raises:
        UserError: The one raised within, with the keys rewritten.
    """
    try:
        yield
    except UserError as error:
        groups = "|".join(map(re.escape, paths))
        # Errors about tasks name the full path already.
        keys = rf"(?<![\w.])({groups})(?=\.(?!tasks\b)[a-z])"
        renamed = type(error)(re.sub(keys, lambda found: paths[found[1]], str(error)))
        renamed.on_every_rank = error.on_every_rank
        raise renamed from error


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate most similar to `name`, or None when nothing is near.

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


def nearest_multiples(value: int, of: int) -> str:
    """Return ``the nearest are A and B``: the multiples of `of` around `value`, at least `of`."""
    below = max(value // of, 1) * of
    return f"the nearest are {below} and {below + of}" if below < value else f"the nearest is {of}"


def nearest_divisors(value: int, of: int) -> str:
    """Return ``the nearest are A and B``: the divisors of `of` around `value`."""
    below = next((n for n in range(min(value, of), 0, -1) if of % n == 0), 1)
    above = next((n for n in range(value, of + 1) if of % n == 0), None)
    return f"the nearest are {below} and {above}" if above else f"the nearest is {below}"


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
