"""Text as documents of sentences, tokenised once: the corpus of masked language modelling."""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from quadriga.config.base import Location
from quadriga.contracts import Dataset, DatasetConfig, Split
from quadriga.data.text.files import RULES, find_text
from quadriga.data.text.store import (
    VERSION,
    DamagedStore,
    TokenStore,
    cache_folders,
    digest_of,
    digest_of_files,
    find_or_make,
)
from quadriga.data.text.tokenise import sources, tokenise
from quadriga.data.text.wordpiece import Vocabulary, read_vocabulary
from quadriga.errors import UserError
from quadriga.randomness import fold, fold_numpy


class TextRecord(NamedTuple):
    """A sample of a corpus: its number, and the corpus, which has the sentences it needs."""

    corpus: TextCorpus
    number: int


class Place(NamedTuple):
    """The position of a sample in its corpus."""

    document: int
    """Position among the documents of the split."""
    sentence: int
    """Number of the sentence in the store."""
    end: int
    """Number of the first sentence after the document."""


@final
class TextCorpus(Dataset):
    """The sentences of one split that have a successor in their document, by index.

    The last sentence of a document has none, so the number of samples is the number of sentences
    minus the number of documents.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: npt.NDArray[np.int64],
        vocabulary: Vocabulary,
    ) -> None:
        """Select the documents of one split.

        Args:
            store: The tokenised text.
            documents: int64 (documents,), ascending: the numbers in the store of the split's
                documents.
            vocabulary: The vocabulary of the token ids.
        """
        self.store = store
        self.special = vocabulary.special
        self.continuations = vocabulary.continuations()
        self.identity = vocabulary.digest
        """A hash of the vocabulary; see `Dataset.identity`."""
        self.vocabulary_size = vocabulary.special.size
        self.documents = documents
        sizes = store.documents[documents + 1] - store.documents[documents] - 1
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        """Return the number of sentences with a successor."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, index: int) -> TextRecord:
        """Return record `index`.

        Raises:
            IndexError: There is no such record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return TextRecord(self, index)

    def place(self, index: int) -> Place:
        """Return the position of sample `index`."""
        document = int(self._ends.searchsorted(index, "right"))
        _, end = self.document(document)
        return Place(document, end - 1 - int(self._ends[document]) + index, end)

    def document(self, position: int) -> tuple[int, int]:
        """Return the first sentence of a document of the split, and the end of its sentences."""
        number = self.documents[position]
        return int(self.store.documents[number]), int(self.store.documents[number + 1])

    def name(self, index: int) -> str:
        """Return the file, document and sentence of sample `index`, counted from 0."""
        place = self.place(index)
        number = int(self.documents[place.document])
        files = self.store.files
        name, first = files[bisect.bisect_right([first for _, first in files], number) - 1]
        sentence = place.sentence - self.document(place.document)[0]
        return f"{name}, document {number - first}, sentence {sentence}"


@final
class TextCorpusConfig(DatasetConfig):
    """Text in files: sentences, running text, JSONL or parquet.

    The text is tokenised once, into ``.quadriga`` beside it. The test split consists of
    `test_files`, or of documents chosen by a hash of their text: the choice does not depend on the
    other documents, and equal documents are in the same split.
    """

    root: Location[Path | None] = None
    """The folder of the text, or its only file."""
    files: Location[tuple[str, ...]] = ()
    """Paths or patterns (``part-*.txt,**/*.parquet``), relative to `root`; none for all files below
    it."""
    test_files: Location[tuple[str, ...]] = ()
    """Files of the test split; without them `test_fraction` of the documents are held out."""
    vocabulary: Location[Path | None] = None
    """The ``vocab.txt``, with one WordPiece per line; its id is the number of the line. None for
    the file in `root`."""
    lowercase: bool = True
    """Whether text is lower-cased and loses its accents (an uncased vocabulary)."""
    format: Literal["auto", "sentences", "raw"] = "auto"
    """How text files are read. sentences: one per line, blank lines between documents; raw:
    paragraphs, which are split into sentences; auto: detected from each file's content. JSONL and
    parquet files are recognised by their suffix."""
    column: str = "text"
    """Key or column of the text in JSONL and parquet."""
    document_sentences: int | None = Field(None, ge=2)
    """Number of sentences after which documents are cut; none for no cut (a book is one
    document)."""
    test_fraction: float = Field(0.05, ge=0, lt=1)
    """Fraction of the documents that is held out for testing if there are no `test_files`."""

    @model_validator(mode="after")
    def _some_text(self) -> TextCorpusConfig:
        if self.root is None and not self.files:
            raise ValueError("root must be set where there are no files; such as data.root=FOLDER")
        return self

    def anchor(self, name: str, text: str) -> str:
        """Leave patterns relative to `root`, where there is one; else see `Config.anchor`."""
        is_below = name in ("files", "test_files") and self.root is not None
        return text if is_below else super().anchor(name, text)

    def kept_files(self) -> dict[str, Path]:
        """Return the vocabulary."""
        return {"vocabulary": self.vocabulary_file()}

    def build(self, split: Split) -> TextCorpus:
        """Open the tokenised text, and tokenise it first if that has not been done.

        Raises:
            UserError: The text or the vocabulary is missing or invalid, or the split has no
                sentence with a successor.
        """
        vocabulary_path = self.vocabulary_file()
        vocabulary = read_vocabulary(vocabulary_path, self.lowercase)
        own = self.test_files if split == "test" and self.test_files else self.files
        key = "data.test_files" if own is self.test_files and own else "data.files"
        files = find_text(self.root, own, key, leave_out=(vocabulary_path,))
        if self.test_files and split == "train" and not self.files:
            tested = find_text(self.root, self.test_files, "data.test_files")
            files = [path for path in files if path not in tested]
        store = self._store(files, vocabulary)
        documents = np.arange(len(store.keys))
        if not self.test_files:
            documents = in_split(store.keys, split, self.test_fraction)
        return corpus_of(store, documents, vocabulary, split)

    def vocabulary_file(self) -> Path:
        """Return the path of the vocabulary.

        Raises:
            UserError: Neither `vocabulary` nor `root` is set.
        """
        if self.vocabulary is not None:
            return self.vocabulary
        if self.root is None:
            raise UserError(
                "data.vocabulary must be set where data.root is not, but is none; "
                "name a vocab.txt, or make one with: quadriga tokenizer train"
            )
        return (self.root.parent if self.root.is_file() else self.root) / "vocab.txt"

    def _store(self, files: Sequence[Path], vocabulary: Vocabulary) -> TokenStore:
        base = _common_folder(files, self.root)
        forced = None if self.format == "auto" else self.format

        def make(folder: Path) -> None:
            texts = sources(files, forced, self.column, base)
            tokenise(folder, texts, vocabulary, self.document_sentences)

        options = (self.format, self.column, self.document_sentences)
        name = store_name(vocabulary, digest_of_files(files, base), *options)
        return find_or_make(cache_folders(base), name, open_store, make)


def _common_folder(files: Sequence[Path], root: Path | None) -> Path:
    if root is not None:
        return root.parent if root.is_file() else root
    return Path(os.path.commonpath([os.path.abspath(path.parent) for path in files]))


def store_name(vocabulary: Vocabulary, *parts: object) -> str:
    """Return the name of a token store: a hash of everything that determines its content."""
    return digest_of(VERSION, RULES, vocabulary.digest, *parts)


def open_store(folder: Path) -> TokenStore | None:
    """Open and verify a store; return None if it is missing or damaged."""
    if not folder.is_dir():
        return None
    try:
        store = TokenStore(folder)
        store.verify()
    except DamagedStore:
        return None
    return store


def in_split(
    keys: npt.NDArray[np.uint64], split: Split, test_fraction: float
) -> npt.NDArray[np.int64]:
    """Return int64 numbers of a split's documents; the test split has keys hashed below a bound.

    Args:
        keys: uint64 (documents,): hash of each document's text.
        split: The split.
        test_fraction: Fraction of the documents that is held out.
    """
    hashed = fold_numpy(fold("holdout"), keys.view(np.int64)).view(np.uint64)
    held = hashed < np.uint64(int(test_fraction * 2**64))
    return np.flatnonzero(held if split == "test" else ~held)


def corpus_of(
    store: TokenStore,
    documents: npt.NDArray[np.int64],
    vocabulary: Vocabulary,
    split: Split,
) -> TextCorpus:
    """Return the corpus of one split.

    Raises:
        UserError: The split has no sentence with a successor.
    """
    corpus = TextCorpus(store, documents, vocabulary)
    if not len(corpus):
        raise UserError(
            f"the {split} split must have a document of two sentences, but of {len(store.keys)} "
            f"documents {len(documents)} are in it; change data.test_fraction, name "
            "data.test_files, cut long documents with data.document_sentences, or add text"
        )
    return corpus
