"""Which rank holds which stage of which replica: pure functions of the config.

A ``conf.json`` has the format of PipeDream: ``module_to_stage_map`` lists the stage of each module,
the last module being the loss; ``stage_to_rank_map`` lists the ranks of each stage, the i-th of
which form the i-th replica. Modules are equal runs of blocks.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quadriga.contracts import Objective, Share, Splittable
from quadriga.errors import UserError, nearest_divisors
from quadriga.files import parse_json, write_text
from quadriga.formatting import bytes_
from quadriga.pipeline.config import PipelineConfig


@dataclasses.dataclass(frozen=True)
class Topology:
    """The ranks of each stage and replica, and the blocks of each stage."""

    ranks: tuple[tuple[int, ...], ...]
    """``ranks[stage][replica]`` is a rank."""
    depths: tuple[int, ...]
    """Blocks of each stage, in model order; longer than `ranks` if a rank has several stages."""

    @property
    def stages(self) -> int:
        """Number of ranks that hold one replica."""
        return len(self.ranks)

    @property
    def replicas(self) -> int:
        """Number of replicas of the model."""
        return len(self.ranks[0])

    def place_of(self, rank: int) -> tuple[int, int]:
        """Return the stage and the replica of a rank.

        Raises:
            ValueError: No stage has this rank.
        """
        for stage, ranks in enumerate(self.ranks):
            if rank in ranks:
                return stage, ranks.index(rank)
        raise ValueError(f"rank {rank} has no place")


def replicas_of(pipeline: PipelineConfig, world_size: int) -> int:
    """Return the number of replicas on `world_size` ranks.

    Raises:
        UserError: The ranks are not a multiple of the stages, or not those of the conf.
    """
    if pipeline.conf is not None:
        return len(_rank_map(pipeline.conf, read_conf(pipeline.conf), world_size)[0])
    if world_size % pipeline.stages:
        raise UserError(
            f"executor.stages must divide the number of ranks ({world_size}), but is "
            f"{pipeline.stages}; {nearest_divisors(pipeline.stages, world_size)}, or start with "
            f"--ranks {pipeline.stages}"
        )
    return world_size // pipeline.stages


def make_topology(pipeline: PipelineConfig, blocks: int, world_size: int) -> Topology:
    """Place the stages.

    Args:
        pipeline: How the model is cut.
        blocks: Blocks of the model.
        world_size: Number of ranks.

    Raises:
        UserError: The stages do not fit the model or the ranks.
    """
    if pipeline.conf is not None:
        conf = read_conf(pipeline.conf)
        ranks = _rank_map(pipeline.conf, conf, world_size)
        return Topology(ranks, _depths_of(pipeline.conf, conf, blocks, len(ranks)))
    replicas = replicas_of(pipeline, world_size)
    stages = pipeline.stages
    # The replicas of one stage are neighbours, so that the large all-reduces stay within a host
    # and only the small activations travel between hosts.
    ranks = tuple(tuple(range(s * replicas, (s + 1) * replicas)) for s in range(stages))
    return Topology(ranks, _depths(pipeline, blocks, stages * pipeline.stages_per_rank))


def _depths(pipeline: PipelineConfig, blocks: int, parts: int) -> tuple[int, ...]:
    if pipeline.depths is None:
        if blocks < parts:
            raise UserError(
                f"executor.stages x executor.stages_per_rank must be at most the model's blocks "
                f"({blocks}), but is {parts}; lower it or set executor.depths"
            )
        return tuple(blocks * (s + 1) // parts - blocks * s // parts for s in range(parts))
    if len(pipeline.depths) != parts:
        raise UserError(
            f"executor.depths must name {parts} stages (executor.stages x "
            f"executor.stages_per_rank), but names {len(pipeline.depths)}: {list(pipeline.depths)}"
        )
    if sum(pipeline.depths) != blocks or min(pipeline.depths) < 0:
        raise UserError(
            f"executor.depths must add up to the model's blocks ({blocks}), but "
            f"{list(pipeline.depths)} add up to {sum(pipeline.depths)}"
        )
    return pipeline.depths


def read_conf(path: Path) -> dict[str, Any]:
    """Read a ``conf.json``: JSON, or a Python literal with single quotes.

    Raises:
        UserError: The file cannot be read, or is no object with both maps.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"executor.conf: {path} cannot be read: {reason}") from error
    try:
        value = parse_json(text)
    except ValueError:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    keys = ("module_to_stage_map", "stage_to_rank_map")
    if not isinstance(value, Mapping) or any(key not in value for key in keys):
        raise UserError(
            f"executor.conf: {path} must be a JSON object with {' and '.join(keys)}, but is not"
        )
    return dict(value)


def _rank_map(path: Path, conf: Mapping[str, Any], world_size: int) -> tuple[tuple[int, ...], ...]:
    given = conf["stage_to_rank_map"]
    where = f"executor.conf: stage_to_rank_map of {path}"
    try:
        by_stage = {int(stage): [_whole(r) for r in ranks] for stage, ranks in given.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f'{where} must map stages to lists of ranks: {{"0": [0, 1]}}') from error
    if sorted(by_stage) != list(range(len(by_stage))) or not by_stage:
        raise UserError(f"{where} must name the stages 0, 1, ..., but names {sorted(by_stage)}")
    ranks = tuple(tuple(by_stage[stage]) for stage in range(len(by_stage)))
    widths = {len(of_stage) for of_stage in ranks}
    if len(widths) != 1 or 0 in widths:
        raise UserError(
            f"{where} must give every stage as many ranks, but gives "
            f"{[len(of_stage) for of_stage in ranks]}: each copy of the model has one of each"
        )
    flat = sorted(rank for of_stage in ranks for rank in of_stage)
    if flat != list(range(len(flat))):
        raise UserError(f"{where} must name each rank from 0 on once, but names {flat}")
    if len(flat) != world_size:
        raise UserError(
            f"{where} is for {len(flat)} ranks, but {world_size} run; start with --ranks "
            f"{len(flat)} or change the file"
        )
    return ranks


def _depths_of(path: Path, conf: Mapping[str, Any], blocks: int, stages: int) -> tuple[int, ...]:
    """Return the blocks of each stage: the modules are equal runs of blocks that cover all."""
    where = f"executor.conf: module_to_stage_map of {path}"
    try:
        stage_of = [_whole(stage) for stage in conf["module_to_stage_map"]]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} must be a list of stages: [0, 0, 1, 1, 1]") from error
    modules = len(stage_of) - 1  # the last one is the loss
    if modules < 1 or stage_of != sorted(stage_of) or set(stage_of) != set(range(stages)):
        raise UserError(
            f"{where} must list stages in order, from 0 to {stages - 1}, each of them, and the "
            f"loss last, but is {stage_of}"
        )
    if modules > blocks:
        raise UserError(
            f"{where} names {modules} modules and the loss, but the model has {blocks} blocks only"
        )
    depths = [0] * stages
    for module, stage in enumerate(stage_of[:-1]):
        depths[stage] += blocks * (module + 1) // modules - blocks * module // modules
    return tuple(depths)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def share_of(pipeline: PipelineConfig, rank: int, world_size: int) -> Share:
    """Return which samples a rank reads: those of its replica. The first stage leads.

    Raises:
        UserError: The ranks are not a multiple of the stages, or not those of the conf.
    """
    replicas = replicas_of(pipeline, world_size)
    if pipeline.conf is None:
        stage, replica = divmod(rank, replicas)
    else:
        ranks = _rank_map(pipeline.conf, read_conf(pipeline.conf), world_size)
        stage, replica = Topology(ranks, ()).place_of(rank)
    return Share(replica, replicas, is_leader=stage == 0)


def describe(
    pipeline: PipelineConfig, objective: Objective, accumulate: int, world_size: int
) -> str:
    """Return a line that describes the cut: schedule, replicas, stages, blocks, micro-batches."""
    assert isinstance(objective, Splittable)
    topology = make_topology(pipeline, objective.depth, world_size)
    depths = "+".join(str(depth) for depth in topology.depths)
    copies = "one copy" if topology.replicas == 1 else f"{topology.replicas} copies"
    return (
        f"{pipeline.schedule}: {copies} of the model over {topology.stages} "
        f"{'stage' if topology.stages == 1 else 'stages'} of {depths} blocks, "
        f"{accumulate} micro-batches per step"
    )


def memory_rows(
    pipeline: PipelineConfig, objective: Objective, accumulate: int, world_size: int
) -> list[tuple[str, str]]:
    """Return the rows (what, value) of a dry run on the stages' parameters and memory.

    Args:
        pipeline: How the model is cut.
        objective: On the meta device.
        accumulate: Micro-batches of a step.
        world_size: Number of ranks.
    """
    assert isinstance(objective, Splittable)
    stages = objective.stages(make_topology(pipeline, objective.depth, world_size).depths)
    sizes = [4 * sum(p.numel() for p in stage.parameters()) for stage in stages]
    copies = 2 if pipeline.schedule == "2bw" else 1
    held = max(sizes) * (2 * copies + 2)
    return [
        ("pipeline", describe(pipeline, objective, accumulate, world_size)),
        ("parameters per stage", ", ".join(bytes_(size) for size in sizes)),
        (
            "memory per rank",
            f"at most {bytes_(held)} of {copies} x parameters, {copies} x gradients and two "
            "moments; activations: quadriga plan",
        ),
    ]


def make_conf(depths: Sequence[int], width: int) -> dict[str, Any]:
    """Return the maps of a ``conf.json`` in which each block is a module, and so is the loss.

    Args:
        depths: Blocks of each stage; the loss lies on the last one.
        width: Number of replicas. The ranks of a stage are neighbours.

    Raises:
        ValueError: A stage before the last has no block, which the maps cannot express.
    """
    if not depths or min(depths[:-1], default=1) < 1:
        raise ValueError(f"each stage but the last must have a block, but they are {depths}")
    stage_of = [stage for stage, blocks in enumerate(depths) for _ in range(blocks)]
    return {
        "module_to_stage_map": [*stage_of, len(depths) - 1],
        "stage_to_rank_map": {
            str(stage): list(range(stage * width, (stage + 1) * width))
            for stage in range(len(depths))
        },
    }


def write_conf(path: Path, depths: Sequence[int], width: int) -> None:
    """Write a ``conf.json`` atomically: to a temporary file, which is then renamed.

    Raises:
        UserError: The file cannot be written.
    """
    lines = [f'  "{key}": {json.dumps(value)}' for key, value in make_conf(depths, width).items()]
    try:
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
