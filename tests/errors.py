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

from quadriga.cli.entry import run
from quadriga.errors import EXIT_USER_ERROR, UserError


def has(text: str, fragment: str) -> bool:
    """Tell whether a text has a fragment, as no part of a longer word, path or number."""
    before = r"(?<![\w.-])" if fragment[0].isalnum() else ""
    after = r"(?!\w|[.-]\w|,\d{3})" if fragment[-1].isalnum() else ""
    return re.search(before + re.escape(fragment) + after, text) is not None


def assert_says(text: str, *fragments: object) -> None:
    """Check that a text has every fragment."""
    missing = [fragment for fragment in map(str, fragments) if not has(text, fragment)]
    assert not missing, f"{missing} not in {text!r}"


@contextmanager
def refuses(
    *fragments: object, error: type[Exception] = UserError
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expect an error that has every fragment; a user's is one line."""
    with pytest.raises(error) as caught:
        yield caught
    assert_says(str(caught.value), *fragments)
    assert error is not UserError or "\n" not in str(caught.value)


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
    capsys.readouterr()
    code = run([str(word) for word in words])
    assert_refused(CompletedProcess(words, code, *capsys.readouterr()), *fragments)
