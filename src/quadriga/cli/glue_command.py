"""The words of ``quadriga glue``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quadriga.cli.options import examples

EPILOG = examples(
    "quadriga glue runs/bert_base --data GLUE --tasks sst2,cola,rte",
    "quadriga glue bert-base-uncased/ --data GLUE --tasks rte --seeds 5 optim.lr=3e-5",
    "quadriga glue scratch --data GLUE --vocabulary vocab.txt model.depth=4",
)


def glue(
    source: Annotated[
        str,
        typer.Argument(
            help="What is fine-tuned: a run, a checkpoint of one, the folder of a published BERT "
            "(config.json, vocab.txt, model.safetensors), or `scratch` for random weights."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder with the tasks: CoLA, SST-2, ...")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Config values, as for `quadriga train`.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, such as `sst2,cola,rte`; by default all in --data.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each task, with the seeds 0, 1, ...")] = 3,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="Random weights in a model of the same size: the floor."
        ),
    ] = False,
    vocabulary: Annotated[
        Path | None, typer.Option(help="The vocab.txt, instead of the one of the source.")
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the runs live; runs/glue_SOURCE by default.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    ranks: Annotated[
        int | None, typer.Option(help="Processes of each run on this machine.", min=1)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", hidden=True, help="It goes on in any case.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, list the runs, stop.")
    ] = False,
) -> int:
    """Fine-tune a BERT on the tasks of GLUE and print one table.

    Started again after a stop, it goes on: finished runs are not made again.
    """
    from quadriga.cli.glue import command

    return command.glue(
        command.GlueRequest(
            source=source,
            data=data,
            overrides=tuple(overrides or ()),
            tasks=tasks,
            seeds=seeds,
            from_scratch=from_scratch,
            vocabulary=vocabulary,
            work_dir=work_dir,
            device=device,
            ranks=ranks,
            dry_run=dry_run,
        )
    )
