"""Start and clean shutdown of the process group."""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
from collections.abc import Iterator, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from quadriga.distributed.allocator import keep_freed_memory
from quadriga.distributed.environment import DistEnv, Launch, pick_device, read_launch, set_threads
from quadriga.distributed.rendezvous import JOIN_MINUTES, meet, without_errors
from quadriga.errors import UserError


@contextlib.contextmanager
def process_group(
    device: str = "auto",
    environ: Mapping[str, str] | None = None,
    timeout_minutes: float = 30.0,
    join_minutes: float = JOIN_MINUTES,
    backend: str | None = None,
) -> Iterator[DistEnv]:
    """Join the launcher's process group, and destroy it at the end.

    Args:
        device: As for `pick_device`.
        environ: Environment variables; this process's by default.
        timeout_minutes: How long a collective may take before it fails.
        join_minutes: How long the ranks wait for each other at the start.
        backend: "gloo" for gloo's collectives between GPUs, as between CPUs; None for NCCL's.

    Yields:
        This process among the run's. A single process has no group.

    Raises:
        UserError: The launcher's variables or the device are invalid, or not all ranks have come.
    """
    launch = read_launch(os.environ if environ is None else environ)
    if launch.world_size > 1 and ":" in device:
        raise UserError(
            f"train.device must be auto, cpu or cuda for {launch.world_size} ranks, but is "
            f"{device}: all of them would share it"
        )
    place = pick_device(device, launch.local_rank)
    set_threads(launch.local_world_size)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    else:
        keep_freed_memory()
    env = DistEnv(launch.rank, launch.world_size, launch.local_rank, launch.local_world_size, place)
    if launch.world_size == 1:
        yield env
        return
    _join(launch, place, timedelta(minutes=timeout_minutes), join_minutes, backend)
    destroys = True
    try:
        yield env
        gc.collect()
        dist.barrier()
    except BaseException as error:
        if getattr(error, "on_every_rank", False):
            _meet(launch.world_size)
        else:
            # Destroying NCCL communicators is collective. A rank that fails alone would wait for
            # the others, which wait for it in a collective, and its error would never be printed.
            destroys = place.type != "cuda"
        _let_go(error)
        raise
    finally:
        # A reference cycle may hold the group. If the cycle is collected after the group is
        # destroyed, gloo's threads and the interpreter wait for each other, and the process hangs
        # or aborts at exit. So cycles are collected first.
        gc.collect()
        if destroys:
            dist.destroy_process_group()


def _join(
    launch: Launch,
    place: torch.device,
    timeout: timedelta,
    join_minutes: float,
    backend: str | None,
) -> None:
    """Initialise the default process group.

    Raises:
        UserError: The ranks cannot meet, or met but cannot connect to each other.
    """
    if launch.launcher == "slurm":
        os.environ.update(RANK=str(launch.rank), WORLD_SIZE=str(launch.world_size))
    is_nccl = place.type == "cuda" and backend != "gloo"
    store = meet(launch, os.environ, join_minutes, timeout)
    try:
        with without_errors():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if is_nccl else "gloo",
                store=store,
                rank=launch.rank,
                world_size=launch.world_size,
                timeout=timedelta(minutes=join_minutes),
                device_id=place if is_nccl else None,
            )
    except RuntimeError as error:  # the base of torch's network errors
        reason = str(error).partition("\n")[0][:200]
        apart = UserError(
            f"rank {launch.rank} of {launch.world_size} has met the others but cannot connect to "
            f"them: {reason}; open the ports between the hosts, name their network in "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, or raise health.join_minutes "
            f"({join_minutes:g})"
        )
        apart.on_every_rank = launch.local_rank != 0  # one line on each host
        raise apart from error
    # To connect is a matter of moments; a collective may wait for a rank that reads or evaluates.
    distributed_c10d._set_pg_timeout(timeout)


def _meet(world_size: int) -> None:
    """Wait for the other ranks, which end with the same error.

    A launcher kills the other ranks once one has exited, and rank 0 may still have to close files
    and print the error.
    """
    with contextlib.suppress(RuntimeError):  # another rank failed and prints its own error
        dist.all_gather_object([None] * world_size, None)


def _let_go(error: BaseException | None) -> None:
    """Clear the finished frames of an error, which keep the run's objects alive."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
