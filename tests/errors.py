"""How tests ask about errors: by exit code, field, value and remedy, and not by sentence.

A fragment is what a message must carry however it is worded: a field's full path, a value, a
file's name, a word of the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from subprocess import CompletedProcess

import pytest

from quadriga.errors import EXIT_USER_ERROR, UserError


def assert_says(text: str, *fragments: object) -> None:
    """Check that a text has every fragment, each as a whole word: no part of a longer name."""
    missing = [
        fragment
        for fragment in map(str, fragments)
        if not re.search(
            r"(?<![\w.-])" * bool(re.match(r"\w", fragment))
            + re.escape(fragment)
            + r"(?!\w|[.-]\w|,\d{3})" * bool(re.search(r"\w$", fragment)),
            text,
        )
    ]
    assert not missing, f"{missing} not in {text!r}"


@contextmanager
def refuses(
    *fragments: object, error: type[Exception] = UserError
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expect an error of one line that has every fragment."""
    with pytest.raises(error) as caught:
        yield caught
    assert "\n" not in str(caught.value)
    assert_says(str(caught.value), *fragments)


def assert_refused(result: CompletedProcess[str], *fragments: object) -> None:
    """Check that a command ended with exit code 2 and one line of error with every fragment."""
    assert result.returncode == EXIT_USER_ERROR, result.stderr
    lines = [x for x in result.stderr.splitlines() if x and not x.startswith("warning: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert_says(lines[0], *fragments)


def assert_command_refused(
    words: Sequence[object], capsys: pytest.CaptureFixture[str], *fragments: object
) -> None:
    """Check the same of a command that runs in this process."""
    from quadriga.cli.entry import run  # after conftest has set the threads

    capsys.readouterr()
    code = run([str(word) for word in words])
    assert_refused(CompletedProcess(words, code, *capsys.readouterr()), *fragments)
