"""A corpus of English text that is part of every Python installation: the language reference."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import final

from pydantic import Field

from quadriga.config.base import Location
from quadriga.contracts import DatasetConfig, Split
from quadriga.data.text.corpus import TextCorpus, corpus_of, in_split, open_store, store_name
from quadriga.data.text.files import RULES, Sentences, paragraphs, split_sentences
from quadriga.data.text.store import cache_folders, digest_of, find_or_make
from quadriga.data.text.tokenise import Source, tokenise
from quadriga.data.text.wordpiece import (
    Vocabulary,
    read_vocabulary,
    train_vocabulary,
    write_vocabulary,
)
from quadriga.errors import UserError

_PROSE = 0.6


@final
class PydocCorpusConfig(DatasetConfig):
    """The topics of ``help()`` as documents, some 3,000 sentences; code and tables are left out.

    It serves to try recipes without any data. The text depends on the version of Python: another
    version has another number of samples, so a run must be resumed under the version it was
    started with.
    """

    vocabulary: Location[Path | None] = None
    """A ``vocab.txt``; none for one that is learned from the text, deterministically."""
    vocabulary_size: int = Field(4096, ge=512)
    """Tokens of the learned vocabulary; fewer if the text has too few pairs to merge."""
    lowercase: bool = True
    """Whether text is lower-cased and loses its accents."""
    test_fraction: float = Field(0.05, ge=0, lt=1)
    """Fraction of the topics that is held out for testing."""

    def build(self, split: Split) -> TextCorpus:
        """Open the cached text and vocabulary; if they are missing, make them first.

        Raises:
            UserError: This Python lacks the text, or the vocabulary is invalid.
        """
        documents = pydoc_documents()
        text, folders = _digest(documents), cache_folders(None)
        vocabulary = self._vocabulary(documents, text, folders)

        def make(folder: Path) -> None:
            tokenise(folder, [Source("pydoc", 0, "pydoc", lambda: _flat(documents))], vocabulary)

        name = store_name(vocabulary, "pydoc", text)
        store = find_or_make(folders, name, open_store, make)
        return corpus_of(store, in_split(store.keys, split, self.test_fraction), vocabulary, split)

    def _vocabulary(self, documents: list[list[str]], text: str, folders: list[Path]) -> Vocabulary:
        if self.vocabulary is not None:
            return read_vocabulary(self.vocabulary, self.lowercase)

        def load(path: Path) -> Vocabulary | None:
            if not path.is_file():
                return None
            try:
                return read_vocabulary(path, self.lowercase)
            except UserError:  # damaged
                return None

        def make(path: Path) -> None:
            learned = train_vocabulary(
                lambda: (sentence for sentences in documents for sentence in sentences),
                self.vocabulary_size,
                self.lowercase,
            )
            write_vocabulary(learned, path)

        return find_or_make(folders, self._vocabulary_name(text), load, make)

    def _vocabulary_name(self, text: str) -> str:
        name = digest_of("pydoc", RULES, text, self.vocabulary_size, self.lowercase)
        return f"{name}.vocab.txt"

    def kept_files(self) -> dict[str, Path]:
        """Return the vocabulary."""
        return {"vocabulary": self.vocabulary_file()}

    def vocabulary_file(self) -> Path:
        """Return the path of the vocabulary; if there is none yet, learn it first.

        Raises:
            UserError: As for `build`.
        """
        if self.vocabulary is not None:
            return self.vocabulary
        documents = pydoc_documents()
        text, folders = _digest(documents), cache_folders(None)
        self._vocabulary(documents, text, folders)
        name = self._vocabulary_name(text)
        return next(folder / name for folder in folders if (folder / name).is_file())


def _digest(documents: list[list[str]]) -> str:
    text = hashlib.blake2b(digest_size=16)
    for sentences in documents:
        text.update("\n".join((*sentences, "")).encode())
    return text.hexdigest()


def pydoc_documents() -> list[list[str]]:
    """Return this Python's language reference: per topic, in order of name, a list of sentences.

    Raises:
        UserError: The module `pydoc_data` is missing.
    """
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise UserError(
            "data.kind=pydoc_corpus needs the text that comes with Python (pydoc_data), but this "
            "Python has none; install its documentation, or use data.kind=text_corpus"
        ) from error
    found: dict[tuple[str, ...], None] = {}
    for _, text in sorted(topics.topics.items()):
        sentences = tuple(s for paragraph in _prose(text) for s in split_sentences(paragraph))
        if sentences:
            found[sentences] = None  # some topics occur under two names
    return [list(sentences) for sentences in found]


def _flat(documents: list[list[str]]) -> Sentences:
    for sentences in documents:
        yield from sentences
        yield None


def _prose(text: str) -> Iterator[str]:
    """Yield the paragraphs of English: those in which most words consist of letters only."""
    lines = text.split("\n")
    underlined = {n - 1 for n, line in enumerate(lines) if line and not line.strip("*=-~^\"'")}
    kept = ("" if n in underlined or n - 1 in underlined else s for n, s in enumerate(lines))
    for paragraph in paragraphs(kept):
        words = paragraph.split()
        english = sum(word.strip("()\"'*.,;:!?").replace("'", "").isalpha() for word in words)
        if len(words) > 3 and english >= _PROSE * len(words) and paragraph.rstrip()[-1] in ".:!?)":
            yield paragraph
