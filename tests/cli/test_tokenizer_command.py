"""``quadriga tokenizer``."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert run(words) == 2
    assert "is there already; add --force to replace it" in capsys.readouterr().err
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
    assert "(the text has no more pairs for 9000)" in capsys.readouterr().out
    assert b"\nThe\n" in output.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "none.txt"], "FILES must be existing files or folders, but none.txt does not"),
        (["train", "text.txt", "--size", "6"], "the size must be at least"),
        (["train", "text.txt", "--output", "no/v.txt"], "--output no/v.txt cannot be written"),
        (["show", "none.txt", "x"], "VOCABULARY none.txt cannot be read"),
        (["show", "text.txt", "x"], "must have the tokens [UNK], [CLS], [SEP], [MASK]"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The cat sat.\nThe cat sat.\n")
    assert run(["tokenizer", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
