"""Small vocabularies and corpora for the tests of text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from quadriga.data.text.corpus import TextCorpus, TextCorpusConfig
from quadriga.data.text.wordpiece import SPECIAL_TOKENS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("the", "cat", "sat", "on", "mat", "un", "believ", "##able", "##ly", ".", ",", "!", "?")
TOKENS = (*SPECIAL_TOKENS, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS))


def vocabulary(folder: Path, tokens=TOKENS) -> Path:
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


def sentence(document: int, number: int) -> str:
    """Return a sentence of its own: ``words`` of single letters, `number` + 1 of them."""
    word = LETTERS[document % 26]
    return " ".join([word] * (number + 1)) + " ."


def write_corpus(folder: Path, sizes=(4, 3, 5, 1, 2)) -> Path:
    """Write documents of so many sentences, one per line, and the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = [
        "".join(f"{sentence(d, n)}\n" for n in range(size)) for d, size in enumerate(sizes)
    ]
    (folder / "text.txt").write_text("\n".join(documents))
    vocabulary(folder)
    return folder


def corpus(folder: Path, sizes=(4, 3, 5, 1, 2), **options) -> TextCorpus:
    """Return a corpus, all of whose documents are in the training split by default."""
    write_corpus(folder, sizes)
    return TextCorpusConfig(root=folder, **{"test_fraction": 0.0, **options}).build("train")


def decoded(found: TextCorpus) -> list[list[str]]:
    """Return the documents of a split as sentences of tokens."""
    documents = []
    for position in range(len(found.documents)):
        first, end = found.document(position)
        bounds = found.store.sentences[first : end + 1]
        documents.append([words(found.store.tokens[a:b]) for a, b in itertools.pairwise(bounds)])
    return documents


def words(ids, tokens=TOKENS) -> str:
    return " ".join(tokens[i] for i in np.asarray(ids).tolist())


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
