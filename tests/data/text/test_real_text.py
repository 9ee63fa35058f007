"""Real English, where the shared data is at hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from quadriga.data.text.corpus import TextCorpusConfig
from quadriga.data.text.files import format_of
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.data.text.tokenise import sentences_of, sources
from quadriga.data.text.wordpiece import read_vocabulary, train_vocabulary, write_vocabulary


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name in ("wikitext2_valid.txt", "republic.txt"):
        shutil.copy(shared_data / "text" / name, folder)
    texts = sources([folder / "wikitext2_valid.txt"], None, "text", folder)
    tokens = train_vocabulary(lambda: sentences_of(texts, "reading"), 4000, True)
    write_vocabulary(tokens, folder / "vocab.txt")
    return folder


def test_articles_are_documents_and_their_text_is_kept(folder: Path) -> None:
    path = folder / "wikitext2_valid.txt"
    assert format_of(path) == "raw"
    corpus = TextCorpusConfig(root=folder, files=(path.name,), test_fraction=0).build("train")
    lines = path.read_text().split("\n")
    headings = [s for s in lines if s.startswith(" = ") and not s.startswith(" = =")]
    assert len(corpus.documents) == len(headings) == 60
    body = [line for line in lines if line.strip() and not line.startswith(" = ")]
    text = " ".join(body)
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    vocabulary = read_vocabulary(folder / "vocab.txt", True)
    whole = vocabulary.encode([text.replace("<unk>", "[UNK]")])[0]
    # The same tokens in the same order, however the text was cut into sentences.
    assert np.array_equal(corpus.store.tokens, whole)
    lengths = np.diff(corpus.store.sentences)
    assert 20 < np.median(lengths) < 40


def test_a_book_without_blank_pages(folder: Path) -> None:
    assert format_of(folder / "republic.txt") == "raw"
    config = TextCorpusConfig(
        root=folder, files=("republic.txt",), document_sentences=50, test_fraction=0.1
    )
    train, test = config.build("train"), config.build("test")
    assert len(train) > 10 * len(train.documents)
    assert 0.03 < len(test.documents) / len(train.documents) < 0.25
    vocabulary = read_vocabulary(folder / "vocab.txt", True)
    whole = vocabulary.encode([(folder / "republic.txt").read_text(encoding="utf-8-sig")])[0]
    assert np.array_equal(train.store.tokens, whole)


def test_real_pairs_have_the_rate_of_masked_words(folder: Path) -> None:
    corpus = TextCorpusConfig(root=folder, files=("wikitext2_valid.txt",)).build("train")
    for options in ({}, {"whole_word": True}, {"pairing": "segments"}):
        view = SentencePairsConfig(**options).build("train")
        samples = [view.sample(corpus.read(i), i) for i in range(0, len(corpus), 8)]
        hidden = sum(int((s["labels"] >= 0).sum()) for s in samples)
        tokens = sum(int(s["lengths"]) - 3 for s in samples)
        assert abs(hidden / tokens - 0.15) < 0.006
        random = np.mean([int(s["is_random"]) for s in samples])
        assert abs(random - 0.5) < 0.06
