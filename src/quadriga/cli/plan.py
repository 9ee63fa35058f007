"""``quadriga plan``, which also prints the command line that trains the best plan."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from quadriga.cli.resolve import resolve
from quadriga.config.own_code import code_options
from quadriga.config.provenance import read_overrides
from quadriga.distributed.environment import pick_device
from quadriga.engine.build import build_on_meta
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.precision import decided
from quadriga.errors import UserError
from quadriga.formatting import bytes_, duration
from quadriga.pipeline.config import PipelineConfig, pipeline_of
from quadriga.pipeline.planner.estimate import estimate_profile
from quadriga.pipeline.planner.measure import (
    measure_network,
    measure_profile,
    micro_batch_sizes,
    threads_per_rank,
)
from quadriga.pipeline.planner.picture import draw
from quadriga.pipeline.planner.profile import (
    Profile,
    find_spec,
    read_profile,
    save_profile,
    splittable,
)
from quadriga.pipeline.planner.search import Plan, Planner, Ranking, Refusal
from quadriga.pipeline.topology import write_conf

CUT = ("kind", "schedule", "stages", "depths", "stages_per_rank", "conf")
"""Fields of ``executor`` that a plan sets."""
DECIDED = (*(f"executor.{n}" for n in CUT), "train.accumulate", "train.recompute", "train.ranks")
"""Overrides that the plan replaces."""


def command(
    recipe: str,
    overrides: Sequence[str],
    ranks: int,
    best: Plan,
    conf: Path,
    per_node: int,
) -> str:
    """Return the command line that trains a plan, with torchrun for several hosts.

    Args:
        recipe: The recipe.
        overrides: The user's overrides.
        ranks: Total number of processes.
        best: The plan.
        conf: Path of its ``conf.json``.
        per_node: Ranks of one host.
    """
    candidate = best.candidate
    is_whole = candidate.schedule == "none"
    kept = [
        f"{key}={value}"
        for key, value in read_overrides(overrides).items()
        if key not in DECIDED and not (is_whole and key.startswith("executor."))
    ]
    train = ["train", recipe, *kept, *code_options()]
    if ranks > per_node:
        hosts = str(-(-ranks // per_node))
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500"]
        start = ["torchrun", "--nnodes", hosts, "--nproc-per-node", str(per_node), *meet]
        words = [*start, "-m", "quadriga", *train]
    else:
        words = ["quadriga", *train, "--ranks", str(ranks)]
    # Values of these keys in the recipe itself must not conflict with the plan.
    if is_whole:
        own = resolve(recipe, None, kept).config.executor
        words += ["executor.kind=data_parallel"] if own.is_cut else []
    else:
        cut = ["executor.kind=pipeline", f"executor.schedule={candidate.schedule}"]
        pipeline = pipeline_of(resolve(recipe, None, [*kept, *cut]).config)
        words += [*cut, f"executor.conf={conf}"]
        words += [] if pipeline.depths is None else ["executor.depths=none"]
        words += [] if pipeline.stages_per_rank == 1 else ["executor.stages_per_rank=1"]
    words += [f"train.accumulate={candidate.micro_batches}"]
    words += [f"train.recompute={candidate.recompute}"]
    return shlex.join(words)


UNITS = {
    "B": 1,
    **{f"{p}B": 1000 ** (i + 1) for i, p in enumerate("kMGT")},
    **{f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")},
}


@dataclass(frozen=True)
class PlanRequest:
    """The command line of ``quadriga plan``."""

    recipe: str
    overrides: tuple[str, ...]
    ranks: int
    memory: str | None
    profile: Path | None
    save_profile: Path | None
    device_spec: str | None
    device: str | None
    top: int
    output: Path | None
    picture: Path | None


def read_memory(text: str) -> int:
    """Return the bytes of a text such as ``16GiB`` or ``16 GB``.

    Raises:
        UserError: The text is not a number and a unit, or is less than 1 byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if found is None or found[2] not in UNITS:
        raise UserError(
            f"--memory must be a number and a unit ({', '.join(UNITS)}), such as 16GiB, "
            f"but is {text!r}"
        )
    size = int(float(found[1]) * UNITS[found[2]])
    if size < 1:
        raise UserError(f"--memory must be at least 1 byte, but is {text!r}")
    return size


def plan(request: PlanRequest) -> None:
    """Make and print a plan, and write the requested files.

    Raises:
        UserError: The request is invalid, or no plan is possible.
    """
    config = resolve(
        request.recipe, None, request.overrides, {"train.device": request.device}
    ).config
    config = config.override(decided(config, pick_device(config.train.device, 0).type))
    if request.ranks < 1:
        raise UserError(f"--ranks must be at least 1, but is {request.ranks}")
    if request.profile is not None and (request.device_spec or request.save_profile):
        raise UserError("--profile must be given alone: it replaces a measurement; drop the other")
    given = None if request.memory is None else read_memory(request.memory)
    console = Console(highlight=False, width=max(118, Console().width))
    splittable(config)
    profile = _profile(request, config, console)
    memory = given or profile.memory
    if memory is None:
        raise UserError("--memory must be set, since the profile does not say it; such as 16GiB")
    pipeline = pipeline_of(config) if config.executor.is_cut else PipelineConfig()
    planner = Planner(
        profile,
        request.ranks,
        config.train.batch_size,
        memory,
        is_deferred=pipeline.deferred_update,
        whole_only=_whole_only(config),
    )
    ranking = planner.rank(request.top)
    _print(console, request, config, profile, memory, ranking)
    best = ranking.plans[0]
    output = request.output or Path("conf.json")
    if request.output is not None:
        write_conf(output, best.depths, best.candidate.width)
        console.print(f"written: {output}", soft_wrap=True)
    if request.picture is not None:
        title = f"{_name(best)}, predicted for {config.name} on {request.ranks} ranks"
        draw(request.picture, [(title, planner.timeline(best, 3))])
        console.print(f"drawn: {request.picture}", soft_wrap=True)
    hint = "" if request.output else f" (with --output {output})"
    if best.candidate.depth == 1:
        hint = ""
    console.print(f"\ntrain it{hint}:", soft_wrap=True)
    per_node = profile.network.ranks_per_node or request.ranks
    if request.ranks > per_node:
        hosts = -(-request.ranks // per_node)
        console.print(f"on each of {hosts} hosts, HOST being one of them:", soft_wrap=True)
    line = command(request.recipe, request.overrides, request.ranks, best, output, per_node)
    console.print(line, soft_wrap=True, markup=False)


def _whole_only(config: RunConfig) -> str | None:
    """Return the reason why a run's model cannot be cut; None if it can."""
    try:
        PipelineConfig().check(config, build_on_meta(config), 1)
    except UserError as error:
        return str(error)
    return None


def _profile(request: PlanRequest, config: RunConfig, console: Console) -> Profile:
    if request.profile is not None:
        return read_profile(request.profile, config.name, config.train.precision)
    sizes = micro_batch_sizes(config.train.batch_size)
    if request.device_spec is not None:
        profile = estimate_profile(config, find_spec(request.device_spec), sizes)
    else:
        device = pick_device(config.train.device, 0)
        memory = (
            torch.cuda.get_device_properties(device).total_memory
            if device.type == "cuda"
            else psutil.virtual_memory().total // request.ranks
        )
        profile = measure_profile(
            config,
            device,
            measure_network(device),
            sizes,
            memory=memory,
            threads=threads_per_rank(request.ranks) if device.type == "cpu" else None,
            say=lambda line: console.print(line, soft_wrap=True),
        )
    if request.save_profile is not None:
        save_profile(profile, request.save_profile)
        console.print(f"written: {request.save_profile}", soft_wrap=True)
    return profile


def _print(
    console: Console,
    request: PlanRequest,
    config: RunConfig,
    profile: Profile,
    memory: int,
    ranking: Ranking,
) -> None:
    facts = profile.facts
    console.print(
        f"{config.name}: {profile.blocks} blocks, {request.ranks} ranks of {bytes_(memory)}, "
        f"{config.train.batch_size} samples a step, {facts.precision}",
        soft_wrap=True,
    )
    console.print(
        f"profile: {facts.method} for {facts.device}, with {facts.batches}; all that follows is "
        f"predicted. {ranking.considered} configurations can run.",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, side in (
        ("", "right"), ("schedule", "left"), ("copies x stages", "right"), ("micro-batch", "right"),
        ("of them", "right"), ("recompute", "left"), ("blocks of the stages", "left"),
        ("step", "right"), ("samples/s", "right"), ("bubble", "right"), ("fullest rank", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=side, no_wrap=name != "blocks of the stages")  # type: ignore[arg-type]
    for number, found in enumerate(ranking.plans, start=1):
        candidate = found.candidate
        table.add_row(
            str(number),
            candidate.schedule,
            f"{candidate.width} x {candidate.depth}",
            str(candidate.micro_batch),
            str(candidate.micro_batches),
            candidate.recompute,
            runs(found.depths),
            duration(found.step_seconds),
            f"{found.samples_per_second:.4g}",
            f"{found.bubble:.1%}",
            bytes_(found.most_memory),
        )
    console.print(table)
    _print_memory(console, ranking.plans[0])
    for line in refused(ranking.refusals):
        console.print(f"refused: {line}", soft_wrap=True)
    if any(request.ranks % d == 0 for d in range(profile.blocks + 1, request.ranks + 1)):
        console.print(
            f"refused: more than {profile.blocks} stages: the model has {profile.blocks} blocks",
            soft_wrap=True,
        )


def refused(refusals: Iterable[Refusal]) -> list[str]:
    """Return one line per reason, with the classes of candidates that cannot run."""
    rows = [
        ((r.schedule,), (f"{r.width} x {r.depth}",), (r.recompute,), r.reason) for r in refusals
    ]
    for place in (2, 0, 1):
        merged: dict[Any, list[str]] = {}
        for row in rows:
            merged.setdefault((*row[:place], *row[place + 1 :]), []).extend(row[place])
        rows = [(*key[:place], tuple(each), *key[place:]) for key, each in merged.items()]
    return [
        f"{', '.join(schedules)}; {', '.join(shapes)}; recompute {' or '.join(recomputes)}: {why}"
        for schedules, shapes, recomputes, why in rows
    ]


def _print_memory(console: Console, best: Plan) -> None:
    console.print("\nmemory of the first, by stage:")
    names = ("weights", "gradients", "optimizer", "ema", "activations", "boundary")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("stage", "blocks", *names, "in all"):
        table.add_column(name, justify="right")
    for stage, (memory, blocks) in enumerate(zip(best.memory, best.depths, strict=True)):
        cells = [bytes_(size) for size in (*memory, memory.total)]
        table.add_row(str(stage), str(blocks), *cells)
    console.print(table)


def runs(depths: tuple[int, ...]) -> str:
    """Return a cut as text with equal neighbours combined: ``5 3*6 1`` has three stages of 6."""
    parts: list[tuple[int, int]] = []
    for blocks in depths:
        if parts and parts[-1][1] == blocks:
            parts[-1] = (parts[-1][0] + 1, blocks)
        else:
            parts.append((1, blocks))
    return " ".join(f"{n}*{blocks}" if n > 1 else str(blocks) for n, blocks in parts)


def _name(best: Plan) -> str:
    candidate = best.candidate
    return (
        f"{candidate.schedule}, {candidate.depth} stages x {candidate.width} copies, "
        f"{candidate.micro_batches} micro-batches of {candidate.micro_batch}"
    )
