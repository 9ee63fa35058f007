"""The ``quadriga`` command, with its subcommands."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from quadriga import __version__
from quadriga.cli import embed as embed_command
from quadriga.cli import options
from quadriga.cli.checkpoint import checkpoint_app
from quadriga.cli.data import data_app
from quadriga.cli.finetune import command as finetune_command
from quadriga.cli.glue import command as glue_command
from quadriga.cli.tokenizer import tokenizer_app
from quadriga.cli.workflow import command as workflow_command
from quadriga.recipes.find import check_recipe

app = typer.Typer(
    name="quadriga",
    help="Pre-train transformers: one engine from a laptop to a cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(checkpoint_app)
app.command(epilog=embed_command.EPILOG)(embed_command.embed)
app.command(epilog=finetune_command.EPILOG)(finetune_command.finetune)
app.command(epilog=glue_command.EPILOG)(glue_command.glue)
app.command(epilog=workflow_command.RUN_EPILOG)(workflow_command.run)
app.command(epilog=workflow_command.STATUS_EPILOG)(workflow_command.status)
app.add_typer(tokenizer_app)
app.add_typer(data_app)


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """Return a context for the imports of a process that has not imported torch yet.

    What they make lives as long as the process. The garbage collector need not look through it,
    neither now, nor whenever it runs, nor at the end: a second for each process.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _version(asked: bool) -> None:
    if asked:
        print(f"quadriga {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pre-train transformers: one engine from a laptop to a cluster."""


@app.command(
    epilog=options.examples(
        "quadriga train mae_digits",
        "quadriga train mae_vit_base data.root=/data/imagenet optim.lr=1e-3 --dry-run",
        "quadriga train mae_vit_base data.root=/data/imagenet --ranks 8 --resume",
        "quadriga train bert_mini data.root=corpus --ranks 2 executor.kind=pipeline "
        "executor.schedule=2bw executor.stages=2 train.accumulate=4",
    )
)
def train(
    context: typer.Context,
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    work_dir: options.WorkDir = None,
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
    """Train a recipe, evaluate it and write its report."""
    check_recipe(recipe)
    with _imports():
        from quadriga.cli import train as training

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
            max_restarts=max_restarts,
            profile=profile,
            amp=amp,
        )
    )


@app.command(
    "eval",
    epilog=options.examples(
        "quadriga eval runs/mae_digits",
        "quadriga eval runs/x knn,linear_probe knn.neighbours=5",
        "quadriga eval runs/x low_shot,retrieval,clustering low_shot.shots=[1,10]",
        "quadriga eval runs/x/checkpoints/step_00001000 knn",
        "quadriga eval model.safetensors knn,linear_probe data.root=flowers --out runs/flowers",
    ),
)
def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            help="A run's work directory, a checkpoint of one, a file of weights (of this project, "
            "timm or Hugging Face), or the folder of a published model."
        ),
    ],
    protocols: Annotated[
        list[str] | None,
        typer.Argument(
            help="Protocols (knn,linear_probe or knn linear_probe), with overrides such as "
            "linear_probe.epochs=10 or data.root=...; those of the run's config by default."
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Evaluate once more what has been evaluated.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the results of weights go; runs/eval_NAME by default."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    code: options.Code = None,
) -> None:
    """Evaluate a run's newest whole checkpoint, or another state, and write the report.

    Every result stays: those with other values or data stand beside the run's own.
    """
    from quadriga import api

    api.evaluate(run, tuple(protocols or ()), device, again, out)


@app.command(
    "verify-resume",
    epilog=options.examples(
        "quadriga verify-resume mae_digits",
        "quadriga verify-resume mae_vit_base data.root=/data/imagenet --layouts ddp:8,fsdp:8",
        "quadriga verify-resume mae_digits --launcher 'srun --ntasks={ranks}'",
    ),
)
def verify_resume(
    recipe: Annotated[str, typer.Argument(help="A recipe, or a run's config.json.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Config values, as for `quadriga train`.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of every run.")] = 12,
    kills: Annotated[int, typer.Option(help="Interruptions of a run.", min=0)] = 4,
    ranks: Annotated[str, typer.Option(help="Numbers of ranks under ddp.")] = "1,2",
    layouts: Annotated[
        str | None, typer.Option(help="Layouts instead of --ranks: `ddp:2,fsdp:2`.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides where the runs are interrupted.")] = 0,
    launcher: Annotated[
        str, typer.Option(help="Words before the command, with {ranks} for the number of ranks.")
    ] = "",
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the runs stay; a folder that is removed by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    code: options.Code = None,
) -> int:
    """Prove that killed and resumed runs equal an uninterrupted run."""
    from quadriga.cli import verify_resume as command

    return command.verify(
        command.VerifyRequest(
            recipe=recipe,
            overrides=tuple(overrides or ()),
            steps=steps,
            kills=kills,
            ranks=ranks,
            layouts=layouts,
            seed=seed,
            launcher=launcher,
            work_dir=work_dir,
            json=as_json,
        )
    )


@app.command(
    epilog=options.examples(
        "quadriga plan bert_large --ranks 64 --memory 80GiB --device-spec a100-80gb "
        "--output conf.json --picture plan.png",
        "quadriga plan bert_mini --ranks 2 --memory 4GiB --save-profile profile.json",
        "quadriga plan bert_mini --ranks 4 --profile profile.json",
    )
)
def plan(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    ranks: Annotated[int, typer.Option(help="Ranks to spread the model over.")] = 1,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory of a rank, such as 16GiB; that of the device by default."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="A profile to read instead of measuring.")
    ] = None,
    save_profile: Annotated[Path | None, typer.Option(help="Where to keep the profile.")] = None,
    device_spec: Annotated[
        str | None,
        typer.Option(
            help="A device to plan for without having it: v100-16gb, a100-80gb, h100, or a JSON "
            "file."
        ),
    ] = None,
    device: options.Device = None,
    top: Annotated[int, typer.Option(help="Plans to show.", min=1)] = 10,
    output: Annotated[
        Path | None, typer.Option(help="Where to write the best plan's conf.json.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Where to draw the best plan's schedule (PNG).")
    ] = None,
    code: options.Code = None,
) -> None:
    """Find the fastest way to cut a recipe's model into stages on so many ranks."""
    from quadriga.cli import plan as command

    command.plan(
        command.PlanRequest(
            recipe=recipe,
            overrides=tuple(overrides or ()),
            ranks=ranks,
            memory=memory,
            profile=profile,
            save_profile=save_profile,
            device_spec=device_spec,
            device=device,
            top=top,
            output=output,
            picture=picture,
        )
    )


@app.command(epilog=options.examples("quadriga report runs/mae_digits"))
def report(
    run: Annotated[Path, typer.Argument(help="The run's work directory.")],
    code: options.Code = None,
) -> None:
    """Write the report of a run or a workflow: one self-contained HTML file."""
    from quadriga.engine.logs.directory import RunDirectory
    from quadriga.report.run import write_report
    from quadriga.report.workflow import write_workflow_report
    from quadriga.workflow.directory import WorkflowDirectory

    workflow = WorkflowDirectory(run)
    if workflow.graph.is_file():
        print(f"report: {write_workflow_report(workflow)}")
        return
    RunDirectory(run).read_config()
    print(f"report: {write_report(run)}")


@app.command(epilog=options.examples("quadriga replay runs/x/replay/step_00001234.safetensors"))
def replay(
    file: Annotated[Path, typer.Argument(help="A file in the `replay` folder of a run.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    code: options.Code = None,
) -> int:
    """Make one bad step again, alone: which rank, module and sample is not finite.

    Exit code 0 when the step is bad again, 1 when it is not.
    """
    from quadriga.cli.replay import replay as make

    return make(file, device)


@app.command(epilog=options.examples("quadriga recipes"))
def recipes() -> None:
    """List the recipes with one line each."""
    from quadriga.cli import listing

    listing.recipes()


@app.command(epilog=options.examples("quadriga doctor"))
def doctor() -> None:
    """Print the environment for a bug report, and name what is missing."""
    from quadriga.cli import listing

    listing.doctor()
