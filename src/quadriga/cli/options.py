"""The arguments and options that commands share, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quadriga.config.own_code import load_code


def examples(*commands: str) -> str:
    """Return the end of a command's help: each command on a line of its own."""
    title = "Examples:" if len(commands) > 1 else "Example:"
    return "\n\n".join((title, *(f"- `{command}`" for command in commands)))


Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe (see `quadriga recipes`), one of your own (`mine.py:my_recipe`), or a run's "
        "config.json."
    ),
]

Source = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_WEIGHTS",
        help="A run, a checkpoint of one, a file of weights (of this project, timm or Hugging "
        "Face), or the folder of a published model.",
    ),
]


def _import(files: list[Path] | None) -> list[Path] | None:
    for file in files or ():
        load_code(file)
    return files


Code = Annotated[
    list[Path] | None,
    typer.Option(
        "--code",
        metavar="FILE.py",
        callback=_import,
        help="Import a file of your own with methods, data sets or other kinds, which a config "
        "names as `./FILE.py:Class`; may be repeated.",
    ),
]
"""The files are imported when the option is read, so commands need not look at it."""
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Config values: `optim.lr=3e-4 model.depth=6 optim.betas=[0.9,0.99]`."),
]
WorkDir = Annotated[Path | None, typer.Option(help="Where the run lives; runs/NAME by default.")]
File = Annotated[Path | None, typer.Option(help="JSON or TOML file of config values.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the newest whole checkpoint of the work dir; or with --resume PATH.",
    ),
]
ResumeFrom = Annotated[Path | None, typer.Option(hidden=True)]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda or cuda:N; short for train.device.")
]
Amp = Annotated[
    bool,
    typer.Option("--amp", help="Compute in bfloat16; short for train.precision=bfloat16."),
]
Ranks = Annotated[
    int | None,
    typer.Option(help="Processes to start on this machine; short for train.ranks.", min=1),
]
MaxRestarts = Annotated[
    int, typer.Option(help="How often the ranks are started again when one has failed.", min=0)
]
Profile = Annotated[
    str | None,
    typer.Option(metavar="STEPS", help="Profile steps: 5, or 10-14; short for log.profile."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the resolved config and stop.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Build everything without memory or data, print, stop.")
]
