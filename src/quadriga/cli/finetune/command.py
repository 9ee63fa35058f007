"""The options of ``quadriga finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quadriga.cli import options
from quadriga.recipes.find import check_recipe

EPILOG = options.examples(
    "quadriga finetune runs/mae_cifar10 data.root=/data/cifar10",
    "quadriga finetune runs/mae_vit_base data.root=/data/imagenet --recipe finetune_vit_base "
    "--ranks 8",
    "quadriga finetune vit.safetensors data.root=flowers epochs=30 optim.layer_decay=0.65 "
    "--dry-run",
)

Recipe = Annotated[
    str,
    typer.Option(
        help="finetune_small for up to some 100,000 images; finetune_vit_base, MAE's on ImageNet; "
        "or any other with objective.kind=supervised."
    ),
]
WorkDir = Annotated[
    Path | None, typer.Option(help="Where the run lives; runs/finetune_NAME by default.")
]


def finetune(
    context: typer.Context,
    source: options.Source,
    overrides: options.Overrides = None,
    recipe: Recipe = "finetune_small",
    work_dir: WorkDir = None,
    config: options.File = None,
    resume: options.Resume = False,
    resume_from: options.ResumeFrom = None,
    device: options.Device = None,
    amp: options.Amp = False,
    ranks: options.Ranks = None,
    max_restarts: options.MaxRestarts = 0,
    profile: options.Profile = None,
    print_config: options.PrintConfig = False,
    dry_run: options.DryRun = False,
    code: options.Code = None,
) -> int:
    """Train an encoder and a new classifier end to end on labelled images.

    Architecture, normalisation and encoder come from the run or the weights, all else from the
    recipe: the result is a run like any other. `data.root` is a folder with one folder per class.
    """
    check_recipe(recipe)
    from quadriga.cli import train as training
    from quadriga.cli.finetune.source import values_from
    from quadriga.errors import UserError

    try:
        start = values_from(source)
    except UserError as error:
        error.on_every_rank = True
        raise
    return training.train(
        training.TrainRequest(
            arguments=context.obj,
            recipe=recipe,
            start=(start, str(source)),
            overrides=tuple(overrides or ()),
            work_dir=work_dir,
            config=config,
            resume=resume or resume_from is not None,
            resume_from=resume_from,
            device=device,
            print_config=print_config,
            dry_run=dry_run,
            ranks=ranks,
            max_restarts=max_restarts,
            profile=profile,
            amp=amp,
        )
    )
