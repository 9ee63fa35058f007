"""The cut of the model and the ranks in the documented BERT commands: pure functions."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quadriga.errors import UserError, nearest_divisors
from quadriga.pipeline.topology import read_conf
from quadriga.surfaces.pipedream_bert.launch import PORT

_MODULE = re.compile(r"[\w.]*bert(?P<layers>\d+)(?:\.[\w.]*)?\.depth=(?P<modules>\d+)")


@dataclass(frozen=True)
class Cut:
    """The cut of the model into modules and stages, and the number of replicas."""

    layers: int
    modules: int
    """Number of runs of layers, of about equal length; the criterion is one more module."""
    stage_of: tuple[int, ...]
    """Stage of each module, and of the criterion."""
    replicas: int

    @property
    def stages(self) -> int:
        """Number of stages."""
        return self.stage_of[-1] + 1

    def blocks_by_stage(self) -> list[list[int]]:
        """Return the layers of each module, by stage."""
        spread = [
            self.layers * (m + 1) // self.modules - self.layers * m // self.modules
            for m in range(self.modules)
        ]
        places = list(zip(self.stage_of[:-1], spread, strict=True))
        return [[n for at, n in places if at == stage] for stage in range(self.stages)]

    @property
    def ranks(self) -> int:
        """Number of processes of the run."""
        return self.stages * self.replicas


def read_cut(flags: argparse.Namespace, world_size: int | None) -> Cut:
    """Return the cut that the flags and their conf describe.

    Args:
        flags: The command line.
        world_size: Number of processes; None to take it from the conf.

    Raises:
        UserError: The flags, the conf and the number of processes contradict each other.
    """
    layers, modules = _layers_and_modules(flags)
    if flags.config_path is not None:
        return _cut_by_conf(flags.config_path, layers, modules, world_size)
    together = Cut(layers, modules, (0,) * (modules + 1), 1)
    if world_size in (None, 1):
        return together
    if not flags.configurable_model:
        raise UserError(
            f"--config_path must be given for {world_size} processes: it says which of them holds "
            "what; models/bert24/depth=8/dp_conf.json is data parallelism"
        )
    if world_size % modules:
        raise UserError(
            f"--num_stages must divide the number of processes ({world_size}) without a "
            f"--config_path, but is {modules}; {nearest_divisors(modules, world_size)}"
        )
    return Cut(layers, modules, (*range(modules), modules - 1), world_size // modules)


def _cut_by_conf(path: Path, layers: int, modules: int, world_size: int | None) -> Cut:
    """Read the stage of each module; the config's own checks cover the ranks of a pipeline."""
    conf = read_conf(path)
    stage_of, ranks = conf["module_to_stage_map"], conf["stage_to_rank_map"]
    where = f"module_to_stage_map of {path}"
    if not isinstance(stage_of, list) or len(stage_of) != modules + 1:
        size = len(stage_of) if isinstance(stage_of, list) else "no"
        raise UserError(
            f"{where} must have {modules + 1} entries, one for each of the model's {modules} "
            f"modules and one for the criterion, but has {size}"
        )
    if not isinstance(ranks, Mapping) or not all(isinstance(r, list) for r in ranks.values()):
        raise UserError(
            f'stage_to_rank_map of {path} must map stages to lists of ranks: {{"0": [0, 1]}}'
        )
    whole = all(type(stage) is int for stage in stage_of)
    if not whole or stage_of != sorted(stage_of) or set(stage_of) != set(range(len(ranks))):
        raise UserError(
            f"{where} must list the stages 0 to {len(ranks) - 1} of stage_to_rank_map in order, "
            f"each of them, but is {stage_of}"
        )
    flat = [rank for of_stage in ranks.values() for rank in of_stage]
    if sorted(flat, key=str) != sorted(range(len(flat)), key=str):
        raise UserError(
            f"stage_to_rank_map of {path} must name each rank from 0 on once, but names {flat}"
        )
    if world_size is not None and len(flat) != world_size:
        raise UserError(
            f"{path} is for {len(flat)} processes, but {world_size} run; start as many with "
            "--nnodes and --nproc_per_node of launch, or change the file"
        )
    return Cut(layers, modules, tuple(stage_of), len(flat) // len(ranks))


def module_sizes(module: str) -> tuple[int, int]:
    """Return the layers and modules in a name such as ``models.bert24.depth=8``.

    Raises:
        UserError: The name has another form, or a module would have no layer.
    """
    found = _MODULE.fullmatch(module)
    if found is None:
        raise UserError(
            f"--module must look like models.bert24.depth=8 (24 layers in 8 modules), but is "
            f"{module!r}"
        )
    layers, modules = int(found["layers"]), int(found["modules"])
    if not 1 <= modules <= layers:
        raise UserError(
            f"--module must have at least one layer in each module, but {module} has {layers} "
            f"layers in {modules} modules"
        )
    return layers, modules


def _layers_and_modules(flags: argparse.Namespace) -> tuple[int, int]:
    layers, modules = module_sizes(flags.module)
    if flags.configurable_model:
        return flags.num_stages * flags.num_layers_per_stage, flags.num_stages
    return layers, modules


def schedule_of(flags: argparse.Namespace, cut: Cut) -> str | None:
    """Return the schedule of the stages; None for a single stage."""
    if cut.stages == 1:
        return None
    if flags.gpipe:
        return "gpipe"
    return "sequential" if flags.no_input_pipelining else "2bw"


def process_environ(
    flags: argparse.Namespace, environ: Mapping[str, str], ranks: int
) -> dict[str, str]:
    """Return torchrun's variables for a process started by hand; empty under a launcher.

    Args:
        flags: Provide --rank, --local_rank, --num_ranks_in_server and the address.
        environ: The environment variables.
        ranks: Number of processes of the run.

    Raises:
        UserError: The launcher and the flags contradict each other.
    """
    if "RANK" in environ:
        if flags.rank is not None and str(flags.rank) != environ["RANK"]:
            raise UserError(
                f"--rank must be the launcher's RANK ({environ['RANK']}), but is {flags.rank}; "
                "remove it"
            )
        return {}
    if flags.rank is None:
        return {}
    if not 0 <= flags.rank < ranks:
        raise UserError(f"--rank must be from 0 to {ranks - 1}, but is {flags.rank}")
    if ranks > 1 and flags.master_addr is None and "MASTER_ADDR" not in environ:
        raise UserError(
            f"--master_addr must be given for {ranks} processes that no launcher has started: the "
            "address of the one with --rank 0"
        )
    local = flags.local_rank if flags.local_rank >= 0 else flags.rank % flags.num_ranks_in_server
    return {
        "RANK": str(flags.rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(flags.num_ranks_in_server),
        "MASTER_ADDR": flags.master_addr or environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": str(flags.master_port or environ.get("MASTER_PORT", PORT)),
    }
