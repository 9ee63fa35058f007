"""``quadriga train``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quadriga.cli.resolve import resolve
from quadriga.config.provenance import Resolved
from quadriga.distributed.environment import pick_device, read_launch
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.precision import AUTO, decided
from quadriga.errors import UserError


@dataclass(frozen=True)
class TrainRequest:
    """The command line of ``quadriga train``."""

    arguments: tuple[str, ...]
    """The whole command line after ``quadriga``, for the ranks to start."""
    recipe: str
    overrides: tuple[str, ...]
    work_dir: Path | None
    config: Path | None
    resume: bool
    resume_from: Path | None
    device: str | None
    print_config: bool
    dry_run: bool
    ranks: int | None
    max_restarts: int = 0
    """Maximum number of restarts of the ranks that this command starts."""
    profile: str | None = None
    amp: bool = False
    start: tuple[Mapping[str, Any], str] | None = None
    """Values above the recipe's and below the user's, and where they come from."""


def train(request: TrainRequest) -> int:
    """Print the config, make a dry run, or train, as requested.

    Returns:
        The exit code: 0, or that of a rank that failed.

    Raises:
        UserError: The request is invalid, or the run cannot start or continue.
    """
    try:
        resolved = resolve(
            request.recipe,
            request.config,
            request.overrides,
            {
                "train.device": request.device,
                "train.ranks": request.ranks,
                "log.profile": request.profile,
                "train.precision": "bfloat16" if request.amp else None,
            },
            request.start,
        )
    except UserError as error:
        error.on_every_rank = True
        raise
    launch = read_launch(os.environ)
    if request.print_config or request.dry_run:
        if launch.rank == 0:
            _describe(_decided_here(resolved), request, launch.world_size)
        return 0
    # What prints a config is spared a tenth of a second.
    from quadriga.cli.start import start_ranks, train_here

    work_dir = request.work_dir or Path("runs") / resolved.config.name
    if launch.launcher == "none" and resolved.config.train.ranks > 1:
        return start_ranks(request, resolved.config, work_dir)
    train_here(request, resolved, work_dir)
    return 0


def _describe(resolved: Resolved[RunConfig], request: TrainRequest, world_size: int) -> None:
    """Print a run's config, or the rows of its dry run."""
    if request.print_config:
        print("\n".join(config_lines(resolved)))
        return
    from quadriga.engine.dry_run import dry_run

    rows = dry_run(resolved.config, max(world_size, resolved.config.train.ranks))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def _decided_here(resolved: Resolved[RunConfig]) -> Resolved[RunConfig]:
    """Return the run with the precisions of a start on this machine."""
    device = resolved.config.train.device  # a run for a GPU can be looked at without one
    place = pick_device(device, 0) if device == "auto" else torch.device(device)
    return resolved.override(decided(resolved.config, place.type), AUTO)


def config_lines(resolved: Resolved[RunConfig]) -> list[str]:
    """Return one line for each value: its path, the value, and its source."""
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
