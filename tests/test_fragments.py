"""The helper that asks about errors can fail."""

from __future__ import annotations

from subprocess import CompletedProcess

import pytest

from errors import assert_refused, has, refuses
from quadriga.errors import UserError


@pytest.mark.parametrize(
    "fragment", ["optim.lr", "0.5", "1,000", "--ranks", "/a/b.pt", "b.pt", "5"]
)
def test_a_whole_word_is_found(fragment: str) -> None:
    assert has("optim.lr (5) of /a/b.pt must be 0.5 or 1,000; see --ranks.", fragment)


@pytest.mark.parametrize("fragment", ["lr", "optim", "5", "1", "ranks", "b", "mean"])
def test_a_part_of_a_name_or_number_is_not(fragment: str) -> None:
    assert not has("optim.lr_scales, of b.pt, must be -5, 15, 0.5, 1,000; --ranks", fragment)


def test_another_error_or_code_or_line_is_no_refusal() -> None:
    with pytest.raises(AssertionError), refuses("optim.lr", "0.5"):
        raise UserError("optim.lr must be 0.1")
    assert str(UserError("optim.lr must\nbe 0.1")) == "optim.lr must be 0.1"
    for code, err in ((1, "error: x\n"), (2, "x\n"), (2, "error: x\nx\n"), (2, "error: y\n")):
        with pytest.raises(AssertionError):
            assert_refused(CompletedProcess("x", code, "", err), "x")
    assert_refused(CompletedProcess("x", 2, "", "warning: w\nerror: x\n"), "x")
