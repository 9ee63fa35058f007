"""Vocabularies that are learned."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from errors import refuses
from quadriga.data.text.wordpiece import (
    SPECIAL_TOKENS,
    Vocabulary,
    train_vocabulary,
    write_vocabulary,
)

TEXT = ["low lower lowest Löwe", "new newer newest wide wider widest", "slow slower"] * 3

AGAIN = """
import hashlib, sys
from pathlib import Path
from quadriga.data.text.wordpiece import train_vocabulary
lines = Path(sys.argv[1]).read_text().splitlines()
print(hashlib.sha256("\\n".join(train_vocabulary(lambda: lines, 900, True)).encode()).hexdigest())
"""


def test_a_vocabulary_starts_with_the_special_tokens_and_letters() -> None:
    found = train_vocabulary(lambda: TEXT, 40, True)
    assert tuple(found[:5]) == SPECIAL_TOKENS
    words = Counter(" ".join(TEXT).lower().replace("ö", "o").split())
    inner = sorted({f"##{letter}" for word in words for letter in word[1:]})
    letters = sorted({letter for word in words for letter in word})
    assert found[5 : 5 + len(inner) + len(letters)] == inner + letters
    assert len(found) == len(set(found)) == 40
    assert {"low", "##est"} <= set(found)
    cased = train_vocabulary(lambda: TEXT, 40, False)
    assert "ö" in cased
    assert "##ö" in cased


def test_what_was_learned_cuts_the_text() -> None:
    vocabulary = Vocabulary(train_vocabulary(lambda: TEXT, 40, True), True, "v")
    for text, ids in zip(TEXT, vocabulary.encode(TEXT), strict=True):
        whole = "".join(vocabulary.tokens[i].removeprefix("##") for i in ids)
        assert whole == text.lower().replace("ö", "o").replace(" ", "")


def test_the_same_text_gives_the_same_vocabulary_in_every_process(tmp_path: Path) -> None:
    words = [hashlib.sha256(str(n % 300).encode()).hexdigest()[:7] for n in range(900)]
    path = tmp_path / "text"
    path.write_text("\n".join(words))
    here = train_vocabulary(lambda: words, 900, True)
    command = [sys.executable, "-c", AGAIN, str(path)]
    other = subprocess.run(
        command, env={**os.environ, "RAYON_NUM_THREADS": "3"}, capture_output=True, timeout=60
    )
    assert other.stdout.decode().strip() == hashlib.sha256("\n".join(here).encode()).hexdigest()
    assert train_vocabulary(lambda: words, 900, True) == here
    assert train_vocabulary(lambda: [" ".join(words)], 900, True) == here


def test_rare_letters_are_left_out() -> None:
    text = ["".join(chr(0x4E00 + n) for n in range(1005)) + chr(0x4E00) * 3]
    found = train_vocabulary(lambda: text, 2000, True)
    letters = [token for token in found if len(token) == 1]
    assert letters == [chr(0x4E00 + n) for n in range(1000)]


def test_too_small_a_size_and_no_text() -> None:
    with refuses("size", "24", "9", "raise"):
        train_vocabulary(lambda: TEXT, 9, True)
    with refuses("text"):
        train_vocabulary(lambda: [" \n"], 100, True)


def test_a_vocabulary_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vocab.txt"
    write_vocabulary(["a", "\u2028"], path)
    assert path.read_bytes() == "a\n\u2028\n".encode()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refuses("No space", error=OSError):
        write_vocabulary(["b"], path)
    assert [p.name for p in tmp_path.iterdir()] == ["vocab.txt"]
    assert path.read_bytes() == "a\n\u2028\n".encode()
