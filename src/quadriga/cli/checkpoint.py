"""The words of ``quadriga checkpoint``: inspect, verify, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quadriga.cli.options import examples

checkpoint_app = typer.Typer(
    name="checkpoint",
    help="Look into checkpoints, verify them, and export their weights.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@checkpoint_app.command(
    epilog=examples(
        "quadriga checkpoint inspect runs/mae_digits",
        "quadriga checkpoint inspect runs/x/checkpoints/step_00001000 --tensors '*.blocks.0.*'",
    )
)
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or a run: its newest checkpoint.")],
    pattern: Annotated[
        str | None,
        typer.Argument(
            help="With --tensors: a pattern (`optimizer.*norm*`), or a part of the names."
        ),
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List names, shapes and types, all or of PATTERN.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what a checkpoint holds. Only headers are read: a checkpoint of any size is quick."""
    from quadriga.cli import checkpoints

    listing = pattern or "*" if tensors or pattern is not None else None
    checkpoints.inspect(path, listing, json)


@checkpoint_app.command(
    epilog=examples("quadriga checkpoint verify runs/a runs/b/checkpoints/step_00001000")
)
def verify(
    paths: Annotated[
        list[Path], typer.Argument(help="Checkpoints, or runs: every checkpoint of them.")
    ],
) -> int:
    """Check every file against its checksum.

    The exit code is 0 when all checkpoints are whole, 1 when one is damaged, and 2 when a path
    is no checkpoint and no run.
    """
    from quadriga.cli import checkpoints

    return checkpoints.verify(paths)


@checkpoint_app.command(
    epilog=examples(
        "quadriga checkpoint export runs/x encoder.safetensors --to timm",
        "quadriga checkpoint export runs/x mae_hf --to hf --part all --weights ema",
    )
)
def export(
    path: Annotated[Path, typer.Argument(help="A run (its newest whole checkpoint) or one of it.")],
    output: Annotated[Path, typer.Argument(help="A file, or for hf a folder.")],
    to: Annotated[str, typer.Option(help="safetensors, hf, timm or onnx.")],
    weights: Annotated[str, typer.Option(help="raw, or ema for their moving average.")] = "raw",
    part: Annotated[
        str, typer.Option(help="encoder, or all: with the decoder and what else was learned.")
    ] = "encoder",
    config: Annotated[
        Path | None, typer.Option(help="The run's config.json, for a checkpoint that was moved.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an export that is there already.")
    ] = False,
) -> None:
    """Write the weights for use elsewhere, and run both models on the same input.

    An export that computes something else than the model is an error and is not kept.
    """
    from quadriga.cli import checkpoints

    checkpoints.export(path, output, to, weights, part, config, force)
