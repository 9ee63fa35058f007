"""The words of ``quadriga run`` and ``quadriga status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quadriga.cli.options import examples

RUN_EPILOG = examples(
    "quadriga run deep_incubation_digits --slots 2",
    "quadriga run deep_incubation_vit_base data.root=/data/imagenet --ranks-per-run 8",
    "quadriga run mae_digits_two_stage train.batch_size=32 high:optim.lr=1e-3 --dry-run",
)
STATUS_EPILOG = examples(
    "quadriga status runs/deep_incubation_digits", "quadriga status runs/x --json"
)


def run(
    recipe: Annotated[str, typer.Argument(help="A workflow (see `quadriga recipes`).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Config values for all nodes, `train.batch_size=64`, or for some: "
            "`module_*:train.epochs=5`."
        ),
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the runs live; runs/NAME by default.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            help="Nodes that run at once; by default one for every --ranks-per-run GPUs, or 1.",
            min=1,
        ),
    ] = None,
    ranks_per_run: Annotated[
        int | None,
        typer.Option(help="Processes of each node; short for train.ranks of all.", min=1),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda; short for train.device of all.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Make these nodes only: a name or `module_*`; may be repeated."),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(help="How often a node that was killed is started again.", min=0)
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", hidden=True, help="It goes on in any case.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print what it would be, stop.")
    ] = False,
) -> int:
    """Make the runs of a workflow, side by side where they can be.

    Started again after a stop or a kill, it goes on: finished nodes are not made again.
    """
    from quadriga.cli.workflow import command

    return command.run(
        command.RunRequest(
            recipe=recipe,
            overrides=tuple(overrides or ()),
            work_dir=work_dir,
            slots=slots,
            ranks_per_run=ranks_per_run,
            device=device,
            only=tuple(only or ()),
            max_restarts=max_restarts,
            dry_run=dry_run,
        )
    )


def status(
    work_dir: Annotated[Path, typer.Argument(help="The work directory of a workflow or a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far a workflow or a run is, and what it has cost; also while it runs."""
    from quadriga.cli import status as command

    command.status(work_dir, as_json)
