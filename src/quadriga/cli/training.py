"""``quadriga train``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from quadriga.cli.resolve import resolve
from quadriga.distributed.environment import process_group, read_launch
from quadriga.engine.console import Console
from quadriga.engine.dry_run import dry_run
from quadriga.engine.run_config import RunConfig
from quadriga.engine.session import Request, run
from quadriga.errors import UserError
from quadriga.provenance import Resolved
from quadriga.report.html import write_report


@dataclass(frozen=True)
class TrainRequest:
    """The command line of ``quadriga train``."""

    recipe: str
    overrides: tuple[str, ...]
    work_dir: Path | None
    config: Path | None
    resume: bool
    resume_from: Path | None
    device: str | None
    print_config: bool
    dry_run: bool
    ranks: int


def train(request: TrainRequest) -> None:
    """Print, rehearse or run what was asked for.

    Raises:
        UserError: Anything the user can mend.
    """
    try:
        resolved = resolve(request.recipe, request.config, request.overrides, request.device)
    except UserError as error:
        error.on_every_rank = True
        raise
    if (request.print_config or request.dry_run) and not read_launch(os.environ).rank == 0:
        return
    if request.print_config:
        print("\n".join(config_lines(resolved)))
        return
    if request.dry_run:
        rows = dry_run(resolved.config, request.ranks)
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
        return
    work_dir = request.work_dir or Path("runs") / resolved.config.name
    session = Request(work_dir, request.resume, request.resume_from)
    with process_group(resolved.config.train.device) as env, Console(env.is_main) as console:
        run(resolved, session, env, console)
        if env.is_main:
            console.say(f"report: {write_report(work_dir)}")


def config_lines(resolved: Resolved[RunConfig]) -> list[str]:
    """Return one line for each value: its path, the value, where it came from."""
    leaves = list(resolved.config.leaves())
    shown = [f"{path} = {_text(value)}" for path, value in leaves]
    width = min(60, max(map(len, shown)))
    return [
        f"{line:<{width}}  # {resolved.sources[path]}"
        for line, (path, _) in zip(shown, leaves, strict=True)
    ]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
