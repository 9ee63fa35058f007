"""The words of ``quadriga tokenizer``: train, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quadriga.cli.options import examples

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
    from quadriga.cli import tokenizers

    tokenizers.train(files, size, output, lowercase, column, min_frequency, force)


@tokenizer_app.command(epilog=examples('quadriga tokenizer show vocab.txt "Pre-training, again."'))
def show(
    vocabulary: Annotated[Path, typer.Argument(help="A vocab.txt.")],
    text: Annotated[str, typer.Argument(help="What to cut.")],
    lowercase: Lowercase = True,
) -> None:
    """Print the pieces of a text with their ids."""
    from quadriga.cli import tokenizers

    tokenizers.show(vocabulary, text, lowercase)
