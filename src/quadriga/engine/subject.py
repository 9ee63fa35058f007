"""What `quadriga eval` evaluates: a run, one of its checkpoints, or weights from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from quadriga.contracts import Objective
from quadriga.distributed.collectives import from_main, on_all
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.mesh import Ranks
from quadriga.engine.build import build_objective
from quadriga.engine.checkpoint.folder import sha256_of
from quadriga.engine.checkpoint.read import is_checkpoint, whole_checkpoint
from quadriga.engine.checkpoint.store import step_of
from quadriga.engine.evaluate import class_names, find_checkpoint, load_objective
from quadriga.engine.initial_weights import weights_of
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.weights import Remedies, load_tensors
from quadriga.weights.architecture import Architecture, read_architecture
from quadriga.weights.files import read_weights

_REMEDIES = Remedies(loose="evaluate another file", resample="evaluate another file")


@final
@dataclass(frozen=True)
class Subject:
    """What is evaluated, before anything large is read."""

    run: RunConfig
    """The run's own config; for weights, one that is made up of their architecture."""
    directory: RunDirectory
    """Where the records go."""
    checkpoint: Path | None = None
    """The checkpoint that was named; None for the newest."""
    weights: Path | None = None
    """The file of weights, if it is one."""
    architecture: Architecture | None = None
    source: dict[str, Any] = field(default_factory=dict)
    """What names the state in a record, where it is not the run's at its step."""

    def find(self, env: DistEnv, console: Console) -> tuple[Path, int]:
        """Return the file or the verified checkpoint, and its step; every rank calls it.

        Raises:
            UserError: There is none, or the named one is damaged.
        """
        if self.weights is not None:
            return self.weights, 0
        named = self.checkpoint
        if named is None:
            found = find_checkpoint(self.directory.path, env, console)
        else:
            found = from_main(lambda: whole_checkpoint(named), env)
        return found, step_of(found)

    def load(
        self, config: RunConfig, found: Path, env: DistEnv, console: Console
    ) -> tuple[Objective, Ranks, tuple[str, ...]]:
        """Read what `find` found; every rank calls it.

        Returns:
            The objective, the ranks it is sharded over, and the names of its classes.

        Raises:
            UserError: The weights do not fit the config.
        """
        if self.architecture is None:
            objective, _, ranks = load_objective(config, self.directory.path, env, console, found)
            return objective, ranks, class_names(self.run, self.directory, found, env)
        made = build_objective(config, env.device, config.seed)
        # An encoder alone leaves out what else a file has, such as an MAE's decoder.
        whole = config.objective.kind() != "encoder"
        target = made if whole else made.get_submodule("encoder")
        assumed = list(self.architecture.assumed)
        if not self.architecture.views:
            assumed.append("images are normalised with the defaults of views.mean and views.std")
        for line in assumed:
            console.warn(f"{found} does not say it: {line}")
        report = on_all(
            lambda: load_tensors(
                target, read_weights(found).tensors, found, interpolate=True, remedies=_REMEDIES
            ),
            env,
        )
        console.say(str(report))
        return made, Ranks(env), self.architecture.class_names


def open_subject(path: Path, out: Path | None) -> Subject:
    """Look at what is to be evaluated.

    Args:
        path: A run, a checkpoint of one, a file of weights, or the folder of a published model.
        out: Where the records of weights go; ``runs/eval_NAME`` by default.

    Raises:
        UserError: It is none of them, or `out` is given for a run, which has a place of its own.
    """
    file = weights_of(path)
    if file.is_file():
        return _weights(file, path, out)
    if out is not None:
        raise UserError(f"--out is for weights, but {path} is of a run, which keeps its results")
    if not is_checkpoint(path):
        directory = RunDirectory(path)
        return Subject(directory.read_config().config, directory)
    folder = path.resolve()
    for above in folder.parents[:3]:
        directory = RunDirectory(above)
        if directory.config.is_file():
            own = folder.parent == directory.checkpoints
            source = {} if own else {"checkpoint": str(folder.relative_to(above))}
            return Subject(directory.read_config().config, directory, path, source=source)
    raise UserError(
        f"the checkpoint {path} is in no run: there is no config.json above it; put it back, or "
        "export its weights and evaluate those"
    )


def _weights(file: Path, path: Path, out: Path | None) -> Subject:
    content = read_weights(file)
    known = read_architecture(file, content.tensors, content.notes)
    kind: dict[str, Any] = {"kind": "encoder"}
    protocols = [{"kind": "knn"}, {"kind": "linear_probe"}]
    if known.classes:
        kind, protocols = {"kind": "supervised", "classes": known.classes}, [{"kind": "held_out"}]
    if known.objective is not None:
        kind = known.objective
    name = path.resolve().stem if path == file else path.resolve().name
    run = RunConfig.from_dict(
        {
            "name": f"eval_{name}",
            "model": known.model.as_dict(),
            "objective": kind,
            "data": {"kind": "image_folder", "root": "data/imagenet"},
            "views": {
                "kind": "image_views",
                "image_px": known.model.as_dict()["image_px"],
                **known.views,
            },
            "optim": {"kind": "adamw", "lr": 0.0},
            "schedule": {"kind": "warmup_cosine"},
            "train": {"steps": 1, "batch_size": 1},
            "evaluation": {"protocols": protocols, "precision": "float32"},
        }
    )
    folder = out or Path("runs") / run.name
    source = {"weights": str(file.resolve()), "sha256": sha256_of(file)}
    return Subject(run, RunDirectory(folder), weights=file, architecture=known, source=source)
