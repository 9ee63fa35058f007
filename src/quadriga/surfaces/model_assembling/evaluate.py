"""``main.py --eval``: weights evaluated on the validation images; nothing is trained or written."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from quadriga.config.provenance import COMMAND_LINE, read_overrides
from quadriga.contracts import Objective, WeightSource
from quadriga.distributed.collectives import on_all
from quadriga.distributed.environment import DistEnv, read_launch
from quadriga.distributed.process_group import process_group
from quadriga.engine import evaluate as engine
from quadriga.engine.build import build_objective, check_shapes
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.engine.initial_weights import fill_from_sources, read_source
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import RunConfig, complete
from quadriga.engine.step.precision import reduced_precision
from quadriga.errors import UserError
from quadriga.modular.parts.cut import meta_depths_of
from quadriga.modular.parts.sources import LIVE
from quadriga.surfaces.model_assembling.output_files import FINISHED, whole_names
from quadriga.surfaces.model_assembling.sources import source_of
from quadriga.surfaces.model_assembling.to_config import assembly_of, config_tree, folder_of
from quadriga.weights import Remedies, load_tensors
from quadriga.weights.layouts.model_stages import depths_of

_SWITCHES = Remedies(loose="choose another --model", resample="choose another --input-size")


def evaluate(flags: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Evaluate the weights that a command line names; return the exit code.

    Raises:
        UserError: The weights are missing, or do not fit the model.
    """
    path = weights_of(flags)
    config = evaluation_config(flags, read_launch(environ).world_size, path is None)
    with process_group(config.train.device) as env, Console(env.is_main) as console:
        objective = build_objective(config, env.device, config.seed)
        if path is None:
            for line in fill_from_sources(config, objective, env, console.warn):
                console.say(line)
        else:
            console.say(on_all(lambda: _fill(objective, path, flags.divided_depths, console), env))
        metrics = _evaluate(config, objective, env, console)
        accuracy, five = 100 * metrics["accuracy"], 100 * metrics.get("accuracy_5", 1.0)
        console.say(f"* Acc@1 {accuracy:.3f} Acc@5 {five:.3f} loss {metrics['loss']:.3f}")
    return 0


def weights_of(flags: argparse.Namespace) -> Path | None:
    """Return the path of the weights; None for the modules of ``--incubation_models``.

    Raises:
        UserError: No flag names weights, and the output folder holds none.
    """
    if flags.finetune:
        return source_of(flags.finetune)
    folder = flags.output_dir
    if (folder / FINISHED).is_file():
        return Path(folder / FINISHED)
    if list_checkpoints(RunDirectory(folder_of(flags)).checkpoints):
        return folder_of(flags)
    if flags.incubation_models:
        return None
    raise UserError(
        f"--eval needs weights: name a file with --finetune, or an --output_dir that holds a run "
        f"({folder} holds none)"
    )


def evaluation_config(flags: argparse.Namespace, ranks: int, is_assembly: bool) -> RunConfig:
    """Return the config of the model, the data and the protocol.

    Raises:
        UserError: The data is missing, or its images do not fit the model.
    """
    tree = config_tree(flags, ranks)
    tree["modular"] = assembly_of(flags) if is_assembly else None
    tree["train"] = {**tree["train"], "steps": 1}
    tree["schedule"] = {"kind": "warmup_cosine"}
    config = RunConfig.from_dict(tree)
    words = read_overrides(flags.override)
    if words:
        config = config.override(complete(words, config), COMMAND_LINE)
    config = config.override({"objective.classes": len(config.data.build("test").classes)})
    check_shapes(config)
    return config


def _evaluate(
    config: RunConfig, objective: Objective, env: DistEnv, console: Console
) -> Mapping[str, float]:
    with (
        tempfile.TemporaryDirectory() as folder,
        reduced_precision(env.device, config.train),
    ):
        data = engine.evaluation_data(config)
        context = engine.make_context(config, objective, data, Path(folder), env, console)
        (result,) = engine.evaluate(config.evaluation.protocols[:1], context, 0, console)
    return result.metrics


def _fill(objective: Objective, path: Path, depths: Sequence[int], console: Console) -> str:
    source = read_source(path, "--finetune", console.warn)
    there = depths_of(source.stages, str(path)) if source.stages else depths
    if sum(there) != sum(depths):
        raise UserError(
            f"--divided_depths must be the {sum(there)} blocks of {path} "
            f"({' '.join(map(str, there))}), but are {sum(depths)} ({' '.join(map(str, depths))})"
        )
    report = load_tensors(
        objective, _whole(source), source.path, interpolate=True, remedies=_SWITCHES
    )
    return str(report)


def _whole(source: WeightSource) -> Mapping[str, Tensor]:
    """Return the tensors of a whole model; a hybrid becomes one model of its depth.

    Raises:
        UserError: A hybrid has no config, or several live modules.
    """
    if not any(name.startswith(LIVE) for name in source.tensors):
        return source.tensors
    modular: Mapping[str, Any] = (source.config or {}).get("modular") or {}
    if len(modular.get("live", ())) != 1:
        raise UserError(
            f"--finetune must name the run of one module, but {source.path} has no config.json or "
            "trained several; name a file"
        )
    depths = list(meta_depths_of(modular["depths"], modular["meta_depths"]))
    (index,) = modular["live"]
    depths[index] = modular["depths"][index]
    return whole_names(depths, source.tensors)
