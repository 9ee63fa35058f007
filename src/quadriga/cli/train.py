"""``quadriga train``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from quadriga.cli.resolve import resolve
from quadriga.config.provenance import Resolved
from quadriga.distributed.collectives import all_gather_values
from quadriga.distributed.environment import pick_device, read_launch
from quadriga.distributed.process_group import process_group
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.preflight import check_start
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.precision import AUTO, decided
from quadriga.errors import UserError
from quadriga.launch.attempts import RESTARTS, restarts

if TYPE_CHECKING:
    from quadriga.engine.resume import Request


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
    work_dir = request.work_dir or Path("runs") / resolved.config.name
    if launch.launcher == "none" and resolved.config.train.ranks > 1:
        return _start_ranks(request, resolved.config, work_dir)
    from quadriga.engine.session import run  # 0.1 s that the launcher of ranks is spared

    with (
        # Outside the process group, so that a signal during its shutdown does not kill the rank;
        # `run` installs the handlers once the group is formed.
        Preemption() as preemption,
        process_group(
            resolved.config.train.device, join_minutes=resolved.config.health.join_minutes
        ) as env,
        Console(env.is_main) as console,
    ):
        # The maximum over ranks, since each host's torchrun counts its own restarts only.
        again = max(all_gather_values(restarts(os.environ), env)) > 0
        start = start_of(request, work_dir, again)
        run(resolved, start, env, console, preemption)
        if env.is_main:
            from quadriga.report.run import write_report

            console.say(f"report: {write_report(work_dir)}")
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


def _start_ranks(request: TrainRequest, config: RunConfig, work_dir: Path) -> int:
    """Check what can be checked before any rank is started, start them, return the exit code."""
    from quadriga.engine.initial_weights import check_initial_weights
    from quadriga.launch.torchrun import run_ranks

    ranks = config.train.ranks
    for local_rank in range(ranks):
        pick_device(config.train.device, local_rank)
    check_start(config, ranks)
    if not list_checkpoints(RunDirectory(work_dir).checkpoints):
        check_initial_weights(config)
    return run_ranks(ranks, request.arguments, request.max_restarts)


def start_of(request: TrainRequest, work_dir: Path, again: bool) -> Request:
    """Return the start of a session.

    The first attempt starts from the checkpoint that the user names. Later attempts resume from
    the work directory if it has a checkpoint.

    Args:
        request: The command line.
        work_dir: The run's directory.
        again: Whether a launcher has restarted the ranks.
    """
    from quadriga.engine.resume import Request

    named = request.resume_from
    if again and list_checkpoints(RunDirectory(work_dir).checkpoints):
        named = None
    # Ranks that `_start_ranks` has started know RESTARTS.
    return Request(work_dir, request.resume or again, named, is_checked=RESTARTS in os.environ)


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
