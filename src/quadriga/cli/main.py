"""The ``quadriga`` command: train, eval, report, replay, checkpoint, recipes, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quadriga import __version__
from quadriga.cli.checkpoint_app import checkpoint_app

app = typer.Typer(
    name="quadriga",
    help="Pre-train transformers: one engine from a laptop to a cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(checkpoint_app)


def _version(asked: bool) -> None:
    if asked:
        print(f"quadriga {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pre-train transformers: one engine from a laptop to a cluster."""


Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda or cuda:N; short for train.device.")
]
ProfiledSteps = Annotated[
    str | None,
    typer.Option(
        metavar="STEPS",
        help="Profile 5 steps after 3 others (5), or steps 10 to 14 (10-14); short for "
        "log.profile.",
    ),
]


@app.command(
    epilog="Examples: `quadriga train mae_digits` | "
    "`quadriga train mae_vit_base data.root=/data/imagenet optim.lr=1e-3 --dry-run` | "
    "`quadriga train mae_vit_base data.root=/data/imagenet --ranks 8 --resume`"
)
def train(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(help="A recipe (see `quadriga recipes`), or a run's config.json.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Config values: `optim.lr=3e-4 model.depth=6 optim.betas=[0.9,0.99]`."),
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the run lives; runs/NAME by default.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="JSON or TOML file of config values.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the newest whole checkpoint of the work dir; or with --resume PATH.",
        ),
    ] = False,
    resume_from: Annotated[Path | None, typer.Option(hidden=True)] = None,
    device: Device = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved config and stop.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Build everything without memory or data, print, stop."),
    ] = False,
    ranks: Annotated[
        int | None,
        typer.Option(help="Processes to start on this machine; short for train.ranks.", min=1),
    ] = None,
    profile: ProfiledSteps = None,
    max_restarts: Annotated[
        int,
        typer.Option(help="How often the ranks are started again when one has failed.", min=0),
    ] = 0,
) -> int:
    """Train a recipe, evaluate it and write its report."""
    from quadriga.cli import training

    return training.train(
        training.TrainRequest(
            arguments=context.obj,
            recipe=recipe,
            overrides=tuple(overrides or ()),
            work_dir=work_dir,
            config=config,
            resume=resume or resume_from is not None,
            resume_from=resume_from,
            device=device,
            print_config=print_config,
            dry_run=dry_run,
            ranks=ranks,
            profile=profile,
            max_restarts=max_restarts,
        )
    )


@app.command(
    "eval",
    epilog="Examples: `quadriga eval runs/mae_digits` | `quadriga eval runs/x knn linear_probe`",
)
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run's work directory.")],
    protocols: Annotated[
        list[str] | None,
        typer.Argument(
            help="Protocols (knn, linear_probe, reconstruction), with overrides such as "
            "linear_probe.epochs=10 or data.root=...; those of the run's config by default."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Evaluate a run's newest whole checkpoint and write its report."""
    from quadriga.cli import judging

    judging.evaluate(run, tuple(protocols or ()), device)


@app.command(epilog="Example: `quadriga report runs/mae_digits`")
def report(run: Annotated[Path, typer.Argument(help="The run's work directory.")]) -> None:
    """Write a run's report: one self-contained HTML file."""
    from quadriga.cli import judging

    judging.report(run)


@app.command(epilog="Example: `quadriga replay runs/x/replay/step_00001234.safetensors`")
def replay(
    file: Annotated[Path, typer.Argument(help="A file in the `replay` folder of a run.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> int:
    """Make one bad step again, alone: which rank, module and sample is not finite.

    Exit code 0 when the step is bad again, 1 when it is not.
    """
    from quadriga.cli.replay import replay as make

    return make(file, device)


@app.command()
def recipes() -> None:
    """List the recipes with one line each."""
    from quadriga.cli import listing

    listing.recipes()


@app.command()
def doctor() -> None:
    """Print the environment for a bug report, and name what is missing."""
    from quadriga.cli import listing

    listing.doctor()
