"""A profile measured on this machine: the times of a recipe's parts, and of messages.

`measure_network` times messages between two processes. It starts each of them as

    python -m quadriga.pipeline.planner.measure RENDEZVOUS_FILE RANK DEVICE
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from quadriga import randomness
from quadriga.contracts import Batch, Share, Stage
from quadriga.data.reading.loader import Loader
from quadriga.data.reading.stream import PlainStream
from quadriga.distributed.environment import LOOPBACK
from quadriga.engine.logs.environment import cores
from quadriga.engine.meters.devices import device_name
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.precision import reduced_precision
from quadriga.errors import UserError
from quadriga.pipeline.planner.profile import (
    Facts,
    Link,
    Measurement,
    Network,
    Profile,
    Recompute,
    UnitCost,
    Units,
    forward,
    make_units,
    sizes,
    splittable,
)

BATCHES = 3
"""Micro-batches measured per size, since the cost of real micro-batches varies."""
REPEATS = 3
"""Timed passes per micro-batch, of which the median is used."""
PATIENCE = 20.0
"""Default of `measure_profile`, in seconds."""
LARGEST = 128
"""Default of `micro_batch_sizes`, in samples."""

Say = Callable[[str], None]


def micro_batch_sizes(batch_size: int, largest: int = LARGEST) -> list[int]:
    """Return the sizes to measure, ascending: divisors of the batch, each at least twice the last.

    Args:
        batch_size: Samples of a step.
        largest: Maximum size.
    """
    chosen: list[int] = []
    for size in range(1, min(batch_size, largest) + 1):
        if batch_size % size == 0 and (not chosen or size >= 2 * chosen[-1]):
            chosen.append(size)
    return chosen


def measure_profile(
    config: RunConfig,
    device: torch.device,
    network: Network,
    micro_sizes: Sequence[int],
    *,
    memory: int | None = None,
    threads: int | None = None,
    patience: float = PATIENCE,
    say: Say = lambda _: None,
) -> Profile:
    """Time the parts of a run's objective on a device.

    Args:
        config: The run's config.
        device: Where to measure.
        network: The links between ranks.
        micro_sizes: Micro-batch sizes in samples, ascending.
        memory: Bytes of a rank's device.
        threads: Threads of a rank on a CPU; torch's current number by default.
        patience: Seconds after which no larger micro-batches are measured.
        say: Receives a line about each measurement.

    Raises:
        UserError: The objective has no stages, or no block.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        found, origin = _measurements(config, device, micro_sizes, patience, say)
        units = make_units(config, device, "none")
        parts, shared = sizes(units, config.optim)
        return Profile(
            facts=Facts(
                recipe=config.name,
                method="measured",
                device=device_name(device),
                precision=config.train.precision,
                torch=torch.__version__,
                threads=torch.get_num_threads(),
                batches=origin,
            ),
            blocks=depth_of(config),
            input=parts[0],
            block=parts[1],
            head=parts[2],
            shared_bytes=shared,
            has_average=config.ema.decay is not None,
            measurements=tuple(found),
            update_seconds=_update_seconds(config, units.block, device),
            network=network,
            memory=memory,
        )
    finally:
        torch.set_num_threads(before)


def depth_of(config: RunConfig) -> int:
    """Return the number of blocks of a run's objective.

    Raises:
        UserError: The objective has no stages, or no block.
    """
    depth = splittable(config).depth
    if depth < 1:
        raise UserError("the model must have at least one block to be planned, but has none")
    return depth


def threads_per_rank(ranks: int) -> int:
    """Return the threads of a rank if `ranks` ranks share this machine's cores; at least 1."""
    return max(1, cores() // ranks)


def _measurements(
    config: RunConfig,
    device: torch.device,
    micro_sizes: Sequence[int],
    patience: float,
    say: Say,
) -> tuple[list[Measurement], str]:
    found: list[Measurement] = []
    origin = ""
    began = time.perf_counter()
    kinds: tuple[Recompute, ...] = ("none", "full")
    made = {kind: make_units(config, device, kind) for kind in kinds}
    for size in micro_sizes:
        if found and time.perf_counter() - began > patience:
            say(f"micro-batches above {found[-1].micro_batch} are not measured: that takes long")
            break
        say(f"measuring micro-batches of {size}")
        batches, origin = _batches(config, size, device)
        found += [_measure(config, made[kind], kind, batches, device) for kind in kinds]
    return found, origin


def _batches(config: RunConfig, size: int, device: torch.device) -> tuple[list[Batch], str]:
    """Return micro-batches and their origin: the run's data, or an example if it is missing."""
    transform = config.views.build("train")
    try:
        dataset = config.data.build("train")
    except UserError:
        return [transform.example(size, device)], "an example"
    count = min(BATCHES, max(1, len(dataset) // size))
    with Loader(
        dataset,
        transform,
        PlainStream(config.seed, len(dataset), size, world_size=1, accumulate=1),
        share=Share(),
        device=device,
        workers=0,
        prefetch=1,
        max_unreadable_fraction=0.5,
        warn=lambda _: None,
    ) as loader:
        batches: Iterator[Batch] = itertools.islice(loader.batches(range(count)), count)
        return list(batches), "the data"


class _Taken(NamedTuple):
    """The seconds of one pass through a part, the bytes that it kept, and its output."""

    forward: float
    backward: float
    kept: int
    output: Tensor


def _measure(
    config: RunConfig,
    units: Units,
    recompute: Recompute,
    batches: Sequence[Batch],
    device: torch.device,
) -> Measurement:
    """Time the parts with micro-batches of one size: the mean over them of median seconds."""
    taken: dict[str, list[_Taken]] = {name: [] for name in units._fields}
    for number, batch in enumerate(batches):
        hidden: Tensor | None = None
        for name, unit in zip(units._fields, units, strict=True):
            repeats = REPEATS + (2 if number == 0 else 0)  # the first ones warm up
            passes = [_pass(config, unit, hidden, batch, device) for _ in range(repeats)]
            passes = passes[-REPEATS:]
            taken[name].append(
                _Taken(
                    statistics.median(p.forward for p in passes),
                    statistics.median(p.backward for p in passes),
                    passes[-1].kept,
                    passes[-1].output,
                )
            )
            hidden = passes[-1].output
    for unit in units:
        unit.zero_grad(set_to_none=True)
    costs = {
        name: UnitCost(
            forward=statistics.fmean(t.forward for t in each),
            backward=statistics.fmean(t.backward for t in each),
            kept=max(t.kept for t in each),
        )
        for name, each in taken.items()
    }
    boundary = max(t.output.numel() * t.output.element_size() for t in taken["block"])
    return Measurement(
        micro_batch=next(iter(batches[0].values())).shape[0],
        recompute=recompute,
        boundary_bytes=boundary,
        batch_bytes=max(sum(t.nbytes for t in batch.values()) for batch in batches),
        **costs,
    )


def _pass(
    config: RunConfig, unit: Stage, hidden: Tensor | None, batch: Batch, device: torch.device
) -> _Taken:
    """Time a part's forward and backward pass once; its gradients accumulate."""
    if hidden is not None:
        hidden = hidden.detach().requires_grad_(hidden.is_floating_point())
    with randomness.micro_batch(config.seed, 0, 0, 0):
        # Two forward passes: one to count bytes, and one to time, since counting takes time.
        kept = forward(unit, hidden, batch, reduced_precision(device, config.train))[1]
        began = _now(device)
        with reduced_precision(device, config.train):
            result = unit(hidden, batch)
        ended = _now(device)
        output = result if isinstance(result, Tensor) else result.only.total
        gradient = torch.ones_like(output)
        turned = _now(device)
        if output.requires_grad:
            torch.autograd.backward(output, gradient)
        return _Taken(ended - began, _now(device) - turned, kept, output.detach())


def _update_seconds(config: RunConfig, unit: Stage, device: torch.device) -> float:
    """Return the seconds of an optimizer step on one block per trainable byte."""
    named = [(n, p) for n, p in unit.named_parameters() if p.requires_grad]
    if not named:
        return 0.0
    optimizer = config.optim.override(
        {"layer_decay": 1.0, "lr_scales": "{}", "constant_lr": ()}
    ).build(named)
    taken = []
    for _ in range(2 + REPEATS):
        for _, parameter in named:
            parameter.grad = torch.zeros_like(parameter)
        began = _now(device)
        optimizer.step()
        taken.append(_now(device) - began)
    size = sum(p.numel() * p.element_size() for _, p in named)
    return statistics.median(taken[2:]) / size


def _now(device: torch.device) -> float:
    """Return a clock's seconds: CPU time for one thread on a CPU, else wall time.

    CPU time does not include moments in which another process uses the core. On CUDA, the device
    is synchronized first.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


SMALL, LARGE = 1024, 8 * 2**20
"""Bytes of the two messages from whose times latency and bandwidth are computed."""
TRANSFERS = 7
"""Timed exchanges per message, of which the median is used."""
TIMEOUT = 120.0
"""Seconds."""


def measure_network(device: torch.device) -> Network:
    """Time messages between two processes: over NCCL with two GPUs or more, else over gloo.

    The result treats all ranks as one node.

    Raises:
        UserError: A process failed, or both took longer than `TIMEOUT`.
    """
    kind = "cuda" if device.type == "cuda" and torch.cuda.device_count() > 1 else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "rendezvous")
        # -P: the current folder is no place to import from.
        command = [sys.executable, "-P", "-m", "quadriga.pipeline.planner.measure", file]
        environ = {**LOOPBACK, **os.environ, "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [*command, str(rank), kind],
                env=environ,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for rank in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=TIMEOUT) for process in ranks]
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"two processes must exchange messages, but did not: {error}"
            ) from error
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    if any(process.returncode for process in ranks):
        reason = (outputs[0][1] or outputs[1][1]).strip().splitlines()
        raise UserError(
            "two processes must exchange messages, but failed "
            f"({reason[-1] if reason else 'no reason'}); give --device-spec or --profile"
        )
    small, large = json.loads(outputs[0][0].splitlines()[-1])
    link = link_of(small, large)
    return Network(within=link, between=link, ranks_per_node=None, overlaps=device.type == "cuda")


def link_of(small: float, large: float) -> Link:
    """Return the link whose messages of `SMALL` and `LARGE` bytes take these seconds."""
    rest = max(large - small, 1e-9)
    return Link(bandwidth=(LARGE - SMALL) / rest, latency=max(0.0, small))


def _exchange(rank: int, kind: str) -> list[float]:
    """Send messages back and forth; return the one-way seconds of a small and a large one."""
    place = torch.device("cpu") if kind == "cpu" else torch.device("cuda", rank)
    found = []
    for size in (SMALL, LARGE):
        message = torch.zeros(size, dtype=torch.uint8, device=place)

        def turn(message: torch.Tensor = message) -> None:
            for sender in (0, 1):
                if rank == sender:
                    dist.send(message, 1 - rank)
                else:
                    dist.recv(message, 1 - rank)

        found.append(_median_seconds(turn, place) / 2)
    return found


def _median_seconds(do: Callable[[], None], place: torch.device) -> float:
    taken = []
    for _ in range(2 + TRANSFERS):
        began = time.perf_counter()
        do()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def main() -> None:
    """Run one of the two processes of `measure_network`; rank 0 prints the seconds as JSON."""
    file, rank, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if kind == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{file}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=TIMEOUT),
    )
    found = _exchange(rank, kind)
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
