"""The corpus that Python carries."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from corpora import TOKENS, vocabulary

from errors import refuses
from quadriga.data.text.pydoc import PydocCorpusConfig, pydoc_documents
from quadriga.data.text.sentence_pairs import SentencePairsConfig


def test_topics_become_english_sentences() -> None:
    documents = pydoc_documents()
    assert len(documents) > 60
    assert 2000 < sum(map(len, documents)) < 8000
    assert len({tuple(document) for document in documents}) == len(documents)
    sentences = [sentence for document in documents for sentence in document]
    assert not [s for s in sentences if "::=" in s or ">>>" in s][20:]
    assert "Assert statements are a convenient way to insert debugging assertions" in " ".join(
        sentences
    )


def test_corpus_and_vocabulary_are_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PydocCorpusConfig(vocabulary_size=1000)
    found = []
    for name in ("a", "b", "b"):
        monkeypatch.setenv("QUADRIGA_CACHE", str(tmp_path / name))
        corpus = config.build("train")
        assert corpus.vocabulary_size == 1000
        files = {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        found.append((len(corpus), corpus.identity, files))
    assert found[0] == found[1] == found[2]
    test = config.build("test")
    assert len(test.documents) + len(corpus.documents) == len(pydoc_documents())
    view = SentencePairsConfig().build("train")
    assert view.sample(corpus.read(0), 1)["ids"].shape == (128,)
    vocabulary_file = next((tmp_path / "b").glob("*.vocab.txt"))
    vocabulary_file.write_text("damaged")
    assert config.build("train").identity == corpus.identity


def test_a_given_vocabulary(tmp_path: Path) -> None:
    corpus = PydocCorpusConfig(vocabulary=vocabulary(tmp_path)).build("train")
    assert corpus.vocabulary_size == len(TOKENS)


def test_a_python_without_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    with refuses("Python"):
        pydoc_documents()
