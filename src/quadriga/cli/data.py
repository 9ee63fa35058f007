"""``quadriga data``: look into the data of a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from quadriga.cli.options import Code, Overrides, Recipe, examples

data_app = typer.Typer(
    name="data",
    help="Look into the data of a recipe.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@data_app.callback()
def _group() -> None:
    # With a callback, typer keeps the name of a group's only command.
    return None


@data_app.command(
    epilog=examples(
        "quadriga data statistics mae_vit_small data.root=photos",
        "quadriga data statistics mae_digits --images 500",
    )
)
def statistics(
    recipe: Recipe,
    overrides: Overrides = None,
    images: Annotated[
        int, typer.Option(help="Number of images that are read at most.", min=1)
    ] = 10_000,
    code: Code = None,
) -> None:
    """Print mean and standard deviation of each channel of the training images, to be pasted."""
    from quadriga.cli.resolve import resolve
    from quadriga.data.images.statistics import channel_statistics

    dataset = resolve(recipe, None, tuple(overrides or ())).config.data.build("train")
    found = channel_statistics(dataset, images)
    missing = f", {found.unreadable} more unreadable" if found.unreadable else ""
    print(f"{found.images:,} of {len(dataset):,} training images{missing}")
    for name, values in (("mean", found.mean), ("std", found.std)):
        print(f"views.{name}=[{','.join(f'{value:.4f}' for value in values)}]")
