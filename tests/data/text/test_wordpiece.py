"""WordPiece against the one of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import TOKENS, vocabulary
from hypothesis import given
from hypothesis import strategies as st

from errors import refuses
from quadriga.data.text.wordpiece import Vocabulary, read_vocabulary, train_vocabulary

TEXTS = [
    "The cat sat, unbelievably, on the mat!",
    "Ünbelievable \t\r\n\u00a0café naïve Ångström ÇA",
    "日本語 and 中文字 mixed",
    "a\u0000b\u200bc\ufffdd \u202e x",
    "x" * 100 + " " + "x" * 101,
    "1.5 $%^&*() `code` don't — … «q»",
    "",
    "ǅ ß İstanbul \u0130 ﬁ",
    "[UNK] is unknown",
]
SAMPLE = " ".join(TEXTS[:3]) * 3


def of_transformers(tokens: list[str], lowercase: bool):
    from transformers import BertTokenizer

    ids = {token: number for number, token in enumerate(tokens)}
    return BertTokenizer(vocab=ids, do_lower_case=lowercase)


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def both(request: pytest.FixtureRequest):
    tokens = train_vocabulary(lambda: [SAMPLE], 200, request.param, 1)
    return Vocabulary(tokens, request.param, "v"), of_transformers(tokens, request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_cut_as_transformers_cuts_them(both, text: str) -> None:
    ours, theirs = both
    assert ours.encode([text])[0] == theirs.encode(text, add_special_tokens=False)


@given(st.text(max_size=60).filter(lambda text: "[" not in text))
def test_any_text_is_cut_as_transformers_cuts_it(both, text: str) -> None:
    ours, theirs = both
    assert ours.encode([text])[0] == theirs.encode(text, add_special_tokens=False)


def test_special_tokens_in_a_text_are_text() -> None:
    ids = Vocabulary(TOKENS, True, "v").encode(["[CLS] a [SEP] [MASK] [PAD]"])[0]
    assert not {TOKENS.index(name) for name in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")} & set(ids)


def test_words_are_cut_greedily_and_long_ones_unknown() -> None:
    ours = Vocabulary(TOKENS, True, "v")
    text = [TOKENS[i] for i in ours.encode(["Unbelievably " + "a" * 101 + " 7"])[0]]
    assert text == [*"un ##b ##e ##l ##i ##e ##v ##a ##b ##ly".split(), "[UNK]", "[UNK]"]


def test_ids_are_lines(tmp_path: Path) -> None:
    tokens = [*TOKENS, "\u2028", "dup", "dup"]  # a line separator is a token, not a line's end
    path = vocabulary(tmp_path, tokens)
    read = read_vocabulary(path, True)
    assert len(read) == len(tokens)
    assert read.ids["\u2028"] == len(TOKENS)
    assert read.ids["dup"] == len(tokens) - 1
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_vocabulary(path, True).tokens == read.tokens
    assert read_vocabulary(path, True).digest == read.digest
    assert read_vocabulary(path, False).digest != read.digest


def test_what_is_wrong_with_a_vocabulary_is_said(tmp_path: Path) -> None:
    with refuses("data.vocabulary", "vocab.txt", "no [SEP], [MASK]", "quadriga tokenizer train"):
        read_vocabulary(vocabulary(tmp_path, ["[PAD]", "[UNK]", "[CLS]", "a"]), True)
    with refuses("data.vocabulary", tmp_path / "none.txt", "quadriga tokenizer train"):
        read_vocabulary(tmp_path / "none.txt", True)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with refuses("data.vocabulary", tmp_path / "binary"):
        read_vocabulary(tmp_path / "binary", True)
