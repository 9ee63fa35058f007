"""``quadriga tokenizer``: train a vocabulary, and show how it cuts a text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from quadriga.cli.options import examples
from quadriga.errors import UserError

tokenizer_app = typer.Typer(
    name="tokenizer",
    help="Learn a WordPiece vocabulary from text, and look at what one does.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Lowercase = Annotated[
    bool, typer.Option(help="Lower-case the text and remove accents (an uncased vocabulary).")
]


@tokenizer_app.command(
    epilog=examples(
        "quadriga tokenizer train corpus/*.txt",
        "quadriga tokenizer train corpus --size 30522 --output corpus/vocab.txt --no-lowercase",
    )
)
def train(
    files: Annotated[
        list[Path], typer.Argument(help="Text, JSONL or parquet files, or folders of them.")
    ],
    size: Annotated[int, typer.Option(help="Tokens, with the special ones.", min=5)] = 8000,
    output: Annotated[Path, typer.Option(help="Where the vocabulary goes.")] = Path("vocab.txt"),
    lowercase: Lowercase = True,
    column: Annotated[str, typer.Option(help="Name of the text in JSONL and parquet.")] = "text",
    min_frequency: Annotated[
        int, typer.Option(help="Least count of a pair that is merged.", min=1)
    ] = 2,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Learn a vocabulary: one token per line. The same text gives the same file."""
    train_tokenizer(files, size, output, lowercase, column, min_frequency, force)


@tokenizer_app.command(epilog=examples('quadriga tokenizer show vocab.txt "Pre-training, again."'))
def show(
    vocabulary: Annotated[Path, typer.Argument(help="A vocab.txt.")],
    text: Annotated[str, typer.Argument(help="What to cut.")],
    lowercase: Lowercase = True,
) -> None:
    """Print the pieces of a text with their ids."""
    show_pieces(vocabulary, text, lowercase)


def train_tokenizer(
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
        UserError: Text is missing or unreadable, or the output exists or cannot be written.
    """
    from quadriga.data.text.files import find_text
    from quadriga.data.text.tokenise import sentences_of, sources
    from quadriga.data.text.wordpiece import train_vocabulary, write_vocabulary

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


def show_pieces(vocabulary: Path, text: str, lowercase: bool) -> None:
    """Print each piece of `text` with its id.

    Raises:
        UserError: `vocabulary` is not a vocabulary.
    """
    from quadriga.data.text.wordpiece import read_vocabulary

    known = read_vocabulary(vocabulary, lowercase, "VOCABULARY")
    ids = known.encode([text])[0]
    print("  ".join(f"{known.tokens[number]} {number}" for number in ids))
    special = known.special
    print(f"{len(ids)} tokens, {ids.count(special.unknown)} unknown")
