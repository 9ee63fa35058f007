"""BERT's WordPiece: Google's ``vocab.txt`` and the `tokenizers` library.

Text is cleaned (control characters are removed, white space becomes spaces), Chinese characters are
separated, letters are lower-cased and lose their accents (NFD), punctuation is split off. Each word
is then cut greedily into the longest pieces of the vocabulary; those after the first are marked
``##``. A word of more than 100 characters, or one that cannot be cut, is ``[UNK]`` (Devlin et al.,
"BERT", 2019).

A vocabulary is learned by merging pairs of pieces, the most frequent first. The `tokenizers`
library counts the pairs. By default it numbers the letters in the order of a hash table that
differs from run to run, and those numbers decide ties between pairs. Here the letters are numbered
first, by their code points, so that the same text gives the same ``vocab.txt``.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from quadriga.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


PAD, UNKNOWN, CLASS, SEPARATOR, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PAD, UNKNOWN, CLASS, SEPARATOR, MASK)
"""The special tokens, in the order in which they start a new vocabulary."""

MAX_WORD = 100
"""Number of characters of the longest word that is cut into pieces."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens, except that of ``[PAD]``."""

    size: int
    """Number of ids of the vocabulary."""
    unknown: int
    class_: int
    separator: int
    mask: int


@final
class Vocabulary:
    """A vocabulary: one token per line of a file, its id the number of the line from 0."""

    def __init__(self, tokens: Sequence[str], lowercase: bool, where: str) -> None:
        """Number the tokens from 0.

        Args:
            tokens: The tokens in the order of their ids. Of equal tokens the last one counts, as in
                Google's reader.
            lowercase: Whether text is lower-cased and its accents removed before it is cut.
            where: Name of the vocabulary in error messages.

        Raises:
            UserError: A special token is missing.
        """
        self.tokens = tuple(tokens)
        self.lowercase = lowercase
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        missing = [name for name in SPECIAL_TOKENS[1:] if name not in self.ids]
        if missing:
            raise UserError(
                f"{where} must have the tokens {', '.join(SPECIAL_TOKENS[1:])}, one token per "
                f"line, but has no {', '.join(missing)}; make one with: quadriga tokenizer train"
            )

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self.tokens)

    @property
    def special(self) -> SpecialTokens:
        """The ids of the special tokens."""
        names = (UNKNOWN, CLASS, SEPARATOR, MASK)
        return SpecialTokens(len(self.tokens), *(self.ids[name] for name in names))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens and of `lowercase`."""
        text = "\n".join((str(self.lowercase), *self.tokens))
        return hashlib.sha256(text.encode()).hexdigest()

    def continuations(self) -> npt.NDArray[np.bool_]:
        """Return bool (ids,): whether a token continues the word of the token before it."""
        return np.fromiter((t.startswith("##") for t in self.tokens), bool, len(self.tokens))

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer. Its only special token is ``[UNK]``.

        The others are ordinary text if they occur in a text: ``[SEP]`` in a corpus does not end a
        sentence.
        """
        from tokenizers import AddedToken, Tokenizer, models

        model = models.WordPiece(
            self.ids,
            unk_token=UNKNOWN,
            max_input_chars_per_word=MAX_WORD,
            continuing_subword_prefix="##",
        )
        made = Tokenizer(model)
        prepare(made, self.lowercase)
        made.add_special_tokens([AddedToken(UNKNOWN, normalized=False, special=True)])
        return made

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens around them."""
        encodings = self._shared.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    @functools.cached_property
    def _shared(self) -> Tokenizer:
        return self.tokenizer()


def prepare(tokenizer: Tokenizer, lowercase: bool) -> None:
    """Set a tokenizer's normalizer and pre-tokenizer to BERT's."""
    from tokenizers import normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def read_vocabulary(path: Path, lowercase: bool, key: str = "data.vocabulary") -> Vocabulary:
    """Read a ``vocab.txt``.

    Args:
        path: The file: UTF-8, one token per line.
        lowercase: See `Vocabulary`.
        key: The config path of the file's name, for error messages.

    Raises:
        UserError: The file is missing, is not text, or lacks a special token.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{key} must be a text file, one token per line, but {path} is not") from (
            error
        )
    except OSError as error:
        raise UserError(
            f"{key} {path} cannot be read: {error.strerror or error}; "
            "make one with: quadriga tokenizer train FILES... --output vocab.txt"
        ) from error
    # Not splitlines: it cuts at characters that may be tokens (U+2028).
    lines = text.removesuffix("\n").split("\n")
    return Vocabulary([line.removesuffix("\r") for line in lines], lowercase, f"{key} {path}")


_LETTERS = 1000
_CHUNK = 1 << 16


def train_vocabulary(
    texts: Callable[[], Iterable[str]], size: int, lowercase: bool, min_frequency: int = 2
) -> list[str]:
    """Learn a vocabulary.

    Args:
        texts: Returns the text from its beginning; it is called three times.
        size: Number of tokens, with the special ones; there are fewer if the text has too few
            pairs that are frequent enough.
        lowercase: Whether text is lower-cased and loses its accents.
        min_frequency: Smallest count of a pair that is merged.

    Returns:
        The tokens in the order of their ids: the special ones, the letters within words (``##a``),
        the letters at the start of words, then the merged pieces. Only the 1,000 most frequent
        letters are kept.

    Raises:
        UserError: There is no text, or the letters alone are more than `size`.
    """
    letters = _letters(texts, lowercase)
    if not letters:
        raise UserError("a vocabulary needs text, but there is none in the files; name others")
    # A vocabulary without merges lists the letters that occur within words.
    found = _train(texts, letters, list(SPECIAL_TOKENS), 0, lowercase, min_frequency)
    inner = sorted(token for token in found if token.startswith("##") and len(token) == 3)
    least = len(SPECIAL_TOKENS) + len(inner) + len(letters)
    if size < least:
        raise UserError(
            f"the size must be at least {least} (the letters of the text), but is {size}; raise it"
        )
    first = [*SPECIAL_TOKENS, *inner]
    return _train(texts, letters, first, size, lowercase, min_frequency)


def _letters(texts: Callable[[], Iterable[str]], lowercase: bool) -> list[str]:
    from tokenizers import Tokenizer, models

    cleaning = Tokenizer(models.WordPiece({UNKNOWN: 0}, unk_token=UNKNOWN))
    prepare(cleaning, lowercase)
    counts: Counter[str] = Counter()
    for text in _joined(texts()):
        counts.update(cleaning.normalizer.normalize_str(text))
    for space in [letter for letter in counts if letter.isspace()]:
        del counts[space]
    frequent = sorted(counts, key=lambda letter: (-counts[letter], letter))[:_LETTERS]
    return sorted(frequent)


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """Join short texts with line breaks, since each call of the library has a fixed cost."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= _CHUNK:
            yield "\n".join(held)
            held, size = [], 0
    yield "\n".join(held)


def _train(
    texts: Callable[[], Iterable[str]],
    letters: list[str],
    first: list[str],
    size: int,
    lowercase: bool,
    min_frequency: int,
) -> list[str]:
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    prepare(tokenizer, lowercase)
    trainer: Any = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=first,
        limit_alphabet=len(letters),
        initial_alphabet=letters,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_joined(texts()), trainer)
    ids = tokenizer.get_vocab(with_added_tokens=False)
    return sorted(ids, key=lambda token: ids[token])


def write_vocabulary(tokens: Iterable[str], path: Path) -> None:
    """Write a ``vocab.txt`` atomically: to a temporary file, flushed and then renamed.

    Raises:
        OSError: The file could not be written; an existing one is unchanged.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{token}\n" for token in tokens)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
