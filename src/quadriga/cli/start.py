"""The start of a run that ``quadriga train`` has resolved: in this process, or on ranks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from quadriga.config.provenance import Resolved
from quadriga.distributed.collectives import all_gather_values
from quadriga.distributed.environment import pick_device
from quadriga.distributed.process_group import process_group
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.initial_weights import check_initial_weights
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.preflight import check_start
from quadriga.engine.resume import Request
from quadriga.engine.run_config import RunConfig
from quadriga.launch.attempts import RESTARTS, restarts

if TYPE_CHECKING:
    from quadriga.cli.train import TrainRequest


def train_here(request: TrainRequest, resolved: Resolved[RunConfig], work_dir: Path) -> None:
    """Train in this process, one rank of the run, and write the report.

    Raises:
        UserError: The run cannot start or continue.
    """
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


def start_ranks(request: TrainRequest, config: RunConfig, work_dir: Path) -> int:
    """Check what can be checked before any rank is started, start them, return the exit code."""
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
    named = request.resume_from
    if again and list_checkpoints(RunDirectory(work_dir).checkpoints):
        named = None
    # Ranks that `start_ranks` has started know RESTARTS.
    return Request(work_dir, request.resume or again, named, is_checked=RESTARTS in os.environ)
