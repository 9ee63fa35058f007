"""``quadriga tokenizer train`` and ``quadriga tokenizer show``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from quadriga.data.text.files import find_text
from quadriga.data.text.tokenise import sentences_of, sources
from quadriga.data.text.wordpiece import read_vocabulary
from quadriga.data.tokenizer_training import train_vocabulary, write_vocabulary
from quadriga.errors import UserError


def train(
    files: Sequence[Path],
    size: int,
    output: Path,
    lowercase: bool,
    column: str,
    min_frequency: int,
    force: bool,
) -> None:
    """Learn a vocabulary and write it.

    Raises:
        UserError: There is no text, it cannot be read, or the output is there or cannot be written.
    """
    if output.exists() and not force:
        raise UserError(f"{output} is there already; add --force to replace it")
    for path in files:
        if not path.exists():
            raise UserError(f"FILES must be existing files or folders, but {path} does not exist")
    found = [p for path in files for p in find_text(path, (), "FILES", leave_out=(output,))]
    texts = sources(list(dict.fromkeys(found)), None, column, Path())
    readings = itertools.count(1)

    def read() -> Iterator[str]:
        return sentences_of(texts, f"reading the text ({next(readings)} of 3)")

    tokens = train_vocabulary(read, size, lowercase, min_frequency)
    try:
        write_vocabulary(tokens, output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
    few = "" if len(tokens) == size else f" (the text has no more pairs for {size})"
    print(f"{output}: {len(tokens)} tokens{few}")


def show(vocabulary: Path, text: str, lowercase: bool) -> None:
    """Print each piece of `text` with its id.

    Raises:
        UserError: `vocabulary` is none.
    """
    known = read_vocabulary(vocabulary, lowercase, "VOCABULARY")
    ids = known.encode([text])[0]
    print("  ".join(f"{known.tokens[number]} {number}" for number in ids))
    special = known.special
    print(f"{len(ids)} tokens, {ids.count(special.unknown)} unknown")
