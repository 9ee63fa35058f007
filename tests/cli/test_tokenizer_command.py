"""``quadriga tokenizer``."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import assert_command_refused, assert_says
from quadriga.cli.entry import run


def test_a_vocabulary_is_trained_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "vocab.txt"
    text.write_text("The cat sat on the mat. The cats sat.\n" * 4)
    words = ["tokenizer", "train", str(text), "--size", "28", "--output", str(output)]
    assert run(words) == 0
    assert f"{output}: 28 tokens" in capsys.readouterr().out
    first = output.read_bytes()
    assert_command_refused(words, capsys, output, "--force")
    assert run([*words, "--force"]) == 0
    assert output.read_bytes() == first
    capsys.readouterr()
    assert run(["tokenizer", "show", str(output), "The cat: zoo"]) == 0
    ids = {token: number for number, token in enumerate(first.decode().split("\n"))}
    shown = capsys.readouterr().out
    assert shown.startswith(f"the {ids['the']}  cat {ids['cat']}  [UNK] 1  [UNK] 1\n")
    assert "4 tokens, 2 unknown" in shown
    assert run([*words[:2], str(tmp_path), *words[3:5], "--force", "--output", str(output)]) == 0
    assert output.read_bytes() == first  # a folder is the text in it, without the vocabulary
    capsys.readouterr()
    assert run([*words, "--force", "--no-lowercase", "--size", "9000"]) == 0
    assert_says(capsys.readouterr().out, "9000")
    assert b"\nThe\n" in output.read_bytes()


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["train", "none.txt"], ("FILES", "none.txt")),
        (["train", "text.txt", "--size", "6"], ("size", "6")),
        (["train", "text.txt", "--output", "no/v.txt"], ("--output", "no/v.txt")),
        (["show", "none.txt", "x"], ("VOCABULARY", "none.txt")),
        (["show", "text.txt", "x"], ("VOCABULARY", "text.txt", "[UNK], [CLS], [SEP], [MASK]")),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    fragments: tuple[object, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The cat sat.\nThe cat sat.\n")
    assert_command_refused(["tokenizer", *words], capsys, *fragments)
