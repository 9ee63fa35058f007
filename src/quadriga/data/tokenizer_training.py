"""Learning a WordPiece vocabulary: pairs of pieces are merged, the most frequent first.

The pairs are counted by the `tokenizers` library. Left to itself it numbers the letters in the
order of a hash table that differs from run to run, and ties between pairs are decided by those
numbers. Here the letters are numbered first, by their code points: the same text gives the same
``vocab.txt``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from quadriga.data.text.wordpiece import SPECIAL_TOKENS, UNKNOWN, prepare
from quadriga.errors import UserError

_LETTERS = 1000
_CHUNK = 1 << 16


def train_vocabulary(
    texts: Callable[[], Iterable[str]], size: int, lowercase: bool, min_frequency: int = 2
) -> list[str]:
    """Learn a vocabulary.

    Args:
        texts: Gives the text from its beginning; it is read three times.
        size: Number of tokens, with the special ones. There are fewer where the text has no more
            pairs that are frequent enough.
        lowercase: Whether text is lower-cased and loses its accents.
        min_frequency: Least count of a pair that is merged.

    Returns:
        The tokens in the order of their ids: the special ones, the letters within words (``##a``),
        the letters that words start with, then what was merged. Of letters the 1,000 most frequent
        are kept.

    Raises:
        UserError: There is no text, or the letters alone are more than `size`.
    """
    letters = _letters(texts, lowercase)
    if not letters:
        raise UserError("a vocabulary needs text, but there is none in the files; name others")
    # A vocabulary of no merges: it names the letters that are found within words.
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
    """Join short texts with line breaks, since each call of the library takes its time."""
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
    """Write a ``vocab.txt`` beside its place, flush it and rename it.

    Raises:
        OSError: It could not be written; what was there still is.
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
