"""Tokenises files of text into a token store."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self, final

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from quadriga.data.text.files import Format, Sentences, format_of, read_documents
from quadriga.data.text.store import StoreWriter
from quadriga.data.text.wordpiece import Vocabulary

_SENTENCES = 4096
_CHARACTERS = 1 << 20
_QUIET = 16 << 20


class Source(NamedTuple):
    """One file of a corpus."""

    name: str
    size: int
    """Size in bytes, for the progress bar; 0 for text that is not in a file."""
    format: str
    read: Callable[[], Sentences]


def sources(files: Sequence[Path], forced: Format | None, column: str, base: Path) -> list[Source]:
    """Return files as sources; the format of each is detected, unless `forced` is given.

    Raises:
        UserError: A file cannot be read.
    """

    def reader(path: Path, file_format: Format) -> Callable[[], Sentences]:
        return lambda: read_documents(path, file_format, column)

    found = []
    for path in files:
        looked = format_of(path)
        is_table = looked in ("jsonl", "parquet")
        file_format = looked if forced is None or is_table else forced
        found.append(
            Source(
                os.path.relpath(path, base),
                path.stat().st_size,
                file_format,
                reader(path, file_format),
            )
        )
    return found


def tokenise(
    folder: Path,
    texts: Sequence[Source],
    vocabulary: Vocabulary,
    document_sentences: int | None = None,
) -> None:
    """Write the token store of a corpus.

    Sentences and documents without tokens are left out.

    Args:
        folder: Folder of the new store.
        texts: The corpus.
        vocabulary: The vocabulary.
        document_sentences: Largest number of sentences of a document; longer ones are cut. None
            for no limit.

    Raises:
        OSError: The store cannot be written.
        UserError: A file cannot be read.
    """
    with (
        StoreWriter(folder, len(vocabulary)) as writer,
        ProgressBar(f"tokenising to {folder}", texts) as bar,
    ):
        builder = _Builder(writer, vocabulary, document_sentences, bar.advance)
        for text in texts:
            writer.source(text.name)
            for sentence in text.read():
                builder.add(sentence)
            builder.add(None)
            builder.flush()
            bar.done(text)
        formats = Counter(text.format for text in texts)
        writer.finish({"vocabulary": vocabulary.digest, "formats": formats})
        files = ", ".join(count(number, f"{name} file") for name, number in formats.items())
        documents, sentences = writer.documents, writer.sentence_count
        bar.found = f"{files}, {count(documents, 'document')}, {count(sentences, 'sentence')}"


def sentences_of(texts: Sequence[Source], what: str) -> Iterator[str]:
    """Yield all sentences of a corpus and show the progress.

    Raises:
        UserError: A file cannot be read.
    """
    with ProgressBar(what, texts) as bar:
        for text in texts:
            unsaid = 0
            for sentence in text.read():
                if sentence is None:
                    continue
                yield sentence
                unsaid += len(sentence)
                if unsaid > _CHARACTERS:
                    bar.advance(unsaid)
                    unsaid = 0
            bar.done(text)


class _Builder:
    """Collects sentences into chunks for the tokenizer, across documents."""

    def __init__(
        self,
        writer: StoreWriter,
        vocabulary: Vocabulary,
        longest: int | None,
        advance: Callable[[int], None],
    ) -> None:
        self._writer = writer
        self._vocabulary = vocabulary
        self._longest = longest
        self._advance = advance
        self._held: list[str] = []
        self._characters = 0
        self._ends: list[tuple[int, int]] = []  # (held sentences before a document's end, its key)
        self._hash = hashlib.blake2b(digest_size=8)
        self._taken = 0  # sentences of the document so far

    def add(self, sentence: str | None) -> None:
        """Add the next sentence; None ends a document."""
        if sentence is None:
            if self._taken:
                key = int.from_bytes(self._hash.digest(), "little")
                self._ends.append((len(self._held), key))
                self._hash, self._taken = hashlib.blake2b(digest_size=8), 0
            return
        self._held.append(sentence)
        self._hash.update(sentence.encode(errors="replace") + b"\n")
        self._taken += 1
        self._characters += len(sentence)
        if self._taken == self._longest:
            self.add(None)
        if len(self._held) >= _SENTENCES or self._characters >= _CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Tokenise and write the held sentences."""
        ids = self._vocabulary.encode(self._held) if self._held else []
        self._writer.sentences([found for found in ids if found])
        kept = np.cumsum([0, *(bool(found) for found in ids)])
        for position, key in self._ends:
            self._writer.end_document(int(kept[-1] - kept[position]), key)
        self._advance(self._characters)
        self._held, self._characters, self._ends = [], 0, []


@final
class ProgressBar:
    """Shows the progress of reading files, with a bar on a terminal, and a summary at the end."""

    def __init__(self, what: str, texts: Sequence[Source]) -> None:
        """Prepare a bar that is titled `what`, with the total size of `texts`."""
        self._what = what
        self._total = sum(text.size for text in texts)
        self._files = len(texts)
        self._finished = 0
        console = Console(stderr=True, highlight=False)
        columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self.found = ""
        """The summary that is printed at the end."""
        self._bar = (
            Progress(*columns, console=console, transient=True) if console.is_terminal else None
        )
        self._task = self._bar.add_task("", total=self._total) if self._bar else TaskID(0)
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        elif self._total >= _QUIET:
            self._say(f"{self._total / 2**20:.0f} MiB in {count(self._files, 'file')}, once")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._total and kind is None and self.found:
            self._say(f"{self.found}, {time.monotonic() - self._start:.0f} s")

    def _say(self, text: str) -> None:
        print(f"{self._what}: {text}", file=sys.stderr, flush=True)

    def advance(self, characters: int) -> None:
        """Advance by a number of characters, which approximates the bytes that were read."""
        if self._bar is not None:
            self._bar.advance(self._task, characters)

    def done(self, text: Source) -> None:
        """Set the progress to the end of a file."""
        self._finished += text.size
        if self._bar is not None:
            self._bar.update(self._task, completed=self._finished)


def count(number: int, noun: str) -> str:
    """Return ``1 file`` or ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
