"""``quadriga embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quadriga.cli import options

EPILOG = options.examples(
    "quadriga embed runs/mae_digits photos --out photos.npz",
    "quadriga embed model.safetensors list.txt --out features.parquet --patches",
    "quadriga embed runs/x photos --out ema.npz evaluation.weights=ema evaluation.workers=4",
)


def embed(
    source: options.Source,
    images: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Images at any depth, with folders of classes or without; or a list file.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write: FILE.npz or FILE.parquet.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Values of the run's config: `views.test_crop_fraction=1.0`, "
            "`evaluation.weights=ema`."
        ),
    ] = None,
    patches: Annotated[
        bool, typer.Option("--patches", help="Write the vectors of the patches too.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images per batch.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is there already.")
    ] = False,
    code: options.Code = None,
) -> None:
    """Write the features of a folder of images, with their names.

    They are those that the protocols evaluate: of a method with a teacher the teacher's, but where
    its paper takes the student's.
    """
    from quadriga.distributed.process_group import process_group
    from quadriga.engine.logs.console import Console
    from quadriga.export import embed as embedding

    request = embedding.EmbedRequest(
        source=source,
        images=images,
        output=out,
        overrides=tuple(overrides or ()),
        patches=patches,
        batch_size=batch_size,
        force=force,
    )
    with process_group(device) as env, Console(env.is_main) as console:
        done = embedding.embed(request, env, console)
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in done.shapes.items())
        left_out = f", {done.left_out} left out" if done.left_out else ""
        console.say(f"written: {out}: {done.images} images{left_out}, of each {shapes}")
