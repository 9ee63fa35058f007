"""Deep Incubation (Ni et al., ICCV 2023): meta model, separate modules, assembly, fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.models.vit import ViTConfig
from quadriga.modular.assembly import AssemblyConfig
from quadriga.modular.hybrid import HybridConfig
from quadriga.modular.parts.start import Start
from quadriga.recipes._imagenet import imagenet_run, imagenet_vit
from quadriga.recipes.deit import deit_cifar10, deit_digits
from quadriga.workflow.graph import REFERENCE, Node, Workflow


@dataclass(frozen=True)
class Incubation:
    """What distinguishes the phases of one incubation."""

    depths: tuple[int, ...]
    """Blocks of each module."""
    initialise: Start
    modules_per_run: int = 1
    """Modules that one process trains side by side."""
    meta: Mapping[str, Any] | None = None
    """Overrides of the meta model's run."""
    module: Mapping[str, Any] | None = None
    """Overrides of the modules' runs."""
    finetune: Mapping[str, Any] | None = None
    """Overrides of the assembled model's run."""


def incubate(
    base: RunConfig, incubation: Incubation, prefix: str = "", meta: str | None = None
) -> list[Node]:
    """Return the runs of an incubation: the meta model, the modules, and fine-tuning of the whole.

    Args:
        base: The target model's end-to-end run; each phase is this run with overrides.
        incubation: What distinguishes the phases.
        prefix: Prefix of the nodes' names.
        meta: An existing node that trains the meta model; None to add one.

    Raises:
        UserError: ``modules_per_run`` is less than 1.
    """
    count, depths = len(incubation.depths), incubation.depths
    if incubation.modules_per_run < 1:
        raise UserError(f"modules_per_run must be 1 or more, but is {incubation.modules_per_run}")
    nodes = []
    if meta is None:
        meta = f"{prefix}meta"
        quiet = {"model.depth": count, "model.drop_path": 0.0}
        nodes.append(_node(meta, base, quiet, incubation.meta))
    names = []
    for first in range(0, count, incubation.modules_per_run):
        live = tuple(range(first, min(first + incubation.modules_per_run, count)))
        names.append(f"{prefix}module_{'_'.join(map(str, live))}")
        hybrid = HybridConfig(
            depths=depths,
            live=live,
            meta=REFERENCE + meta,
            initialise=incubation.initialise,
        )
        nodes.append(_node(names[-1], base, {"modular": hybrid.as_dict()}, incubation.module))
    assembly = AssemblyConfig(depths=depths, modules=tuple(REFERENCE + name for name in names))
    final = _node(f"{prefix}finetune", base, {"modular": assembly.as_dict()}, incubation.finetune)
    return [*nodes, final]


def _node(
    name: str, base: RunConfig, own: Mapping[str, Any], phase: Mapping[str, Any] | None
) -> Node:
    return Node(name, base.override({"name": name, **own, **(phase or {})}))


def equal_depths(depth: int, modules: int) -> tuple[int, ...]:
    """Divide `depth` blocks among modules that differ by at most one block; later ones get more.

    Raises:
        UserError: Fewer than two modules, or more than blocks.
    """
    if modules < 2:
        raise UserError(f"modules must be 2 or more, but is {modules}; quadriga train trains one")
    if modules > depth:
        raise UserError(f"modules must be at most the model's {depth} blocks, but is {modules}")
    return tuple(depth * (i + 1) // modules - depth * i // modules for i in range(modules))


def deep_incubation_digits(
    modules: int = 4, initialise: Start = "function_preserving", modules_per_run: int = 1
) -> Workflow:
    """Modules of two blocks on the embedded handwritten digits: a minute or two on 2 cores.

    Command: ``quadriga run deep_incubation_digits --slots 2``. Expected: about 98 % for the meta
    model and the hybrids, 99 % after fine-tuning.
    """
    depths = equal_depths(2 * modules, modules)
    base = deit_digits(30).override({"name": "end_to_end", "model.depth": sum(depths)})
    incubation = Incubation(
        depths=depths,
        initialise=initialise,
        modules_per_run=modules_per_run,
        module={"train.epochs": 10},
        finetune={
            "train.epochs": 10,
            "optim.lr": 1e-3,
            "schedule.warmup_epochs": 1,
            "evaluation.at_start": True,
        },
    )
    return _workflow("deep_incubation_digits", base, incubation)


def deep_incubation_cifar10(
    root: Path = Path("data/cifar10"),
    fraction: float = 0.2,
    initialise: Start = "function_preserving",
    modules_per_run: int = 1,
) -> Workflow:
    """Four modules of four blocks on a fifth of CIFAR-10: sized for 2 cores.

    Command: ``quadriga run deep_incubation_cifar10 root=CIFAR10_FOLDER --slots 2``. The meta model
    trains for 10 epochs, the modules for 5 and the whole for 5: 0.59 of the critical path of 16
    epochs end to end.
    """
    base = deit_cifar10(root, fraction).override({"name": "end_to_end"})
    incubation = Incubation(
        depths=(4, 4, 4, 4),
        initialise=initialise,
        modules_per_run=modules_per_run,
        meta={"train.epochs": 10},
        module={"train.epochs": 5},
        finetune={"train.epochs": 5, "evaluation.at_start": True},
    )
    return _workflow("deep_incubation_cifar10", base, incubation)


def _workflow(name: str, base: RunConfig, incubation: Incubation) -> Workflow:
    nodes = incubate(base, incubation)
    return Workflow(name, tuple(nodes), nodes[-1].name, base)


def _published(
    name: str,
    model: ViTConfig,
    root: Path,
    drop_path: float,
    initialise: Start,
    modules: int,
    modules_per_run: int,
) -> Workflow:
    """Return the published schedule: 300, 100 and 100 epochs of batches of 2048.

    The reference accumulates 1, 2 and 4 micro-batches on 8 GPUs; more of them need less memory.
    """
    base = imagenet_run("end_to_end", imagenet_vit(model, drop_path), root, 300, 2048, 20)
    fine = {"train.accumulate": 4, "optim.clip_norm": 1.0, "evaluation.at_start": True}
    incubation = Incubation(
        depths=equal_depths(model.depth, modules),
        initialise=initialise,
        modules_per_run=modules_per_run,
        module={"train.epochs": 100, "train.accumulate": 2, "model.drop_path": 0.1},
        finetune={"train.epochs": 100, "schedule.warmup_epochs": 0, **fine},
    )
    return _workflow(name, base, incubation)


def deep_incubation_vit_base(
    root: Path = Path("data/imagenet"),
    initialise: Start = "random",
    modules: int = 4,
    modules_per_run: int = 1,
) -> Workflow:
    """ViT-B/16 of four modules with the published hyper-parameters (300 + 100 + 100 epochs).

    Command: ``quadriga run deep_incubation_vit_base data.root=IMAGENET train.ranks=8``. The
    reference reports 82.4 % top-1; initialise=function_preserving is the better start.
    """
    model = ViTConfig.base()
    name = "deep_incubation_vit_base"
    return _published(name, model, root, 0.1, initialise, modules, modules_per_run)


def deep_incubation_vit_large(
    root: Path = Path("data/imagenet"),
    initialise: Start = "random",
    modules: int = 4,
    modules_per_run: int = 1,
) -> Workflow:
    """ViT-L/16 of four modules with the published hyper-parameters (300 + 100 + 100 epochs).

    Command: ``quadriga run deep_incubation_vit_large data.root=IMAGENET train.ranks=8``. The
    reference reports 83.9 % top-1; initialise=function_preserving is the better start.
    """
    model = ViTConfig.large()
    name = "deep_incubation_vit_large"
    return _published(name, model, root, 0.5, initialise, modules, modules_per_run)


def deep_incubation_vit_huge(
    root: Path = Path("data/imagenet"),
    initialise: Start = "random",
    modules: int = 4,
    modules_per_run: int = 1,
) -> Workflow:
    """ViT-H/14 of four modules with the published hyper-parameters (300 + 100 + 100 epochs).

    Command: ``quadriga run deep_incubation_vit_huge data.root=IMAGENET train.ranks=8``. The
    reference reports 84.3 % top-1; initialise=function_preserving is the better start. The blocks
    have no bias of queries, keys and values, like those of the released weights.
    """
    model = ViTConfig.huge().override({"qkv_bias": False, "norm_eps": 1e-5})
    name = "deep_incubation_vit_huge"
    return _published(name, model, root, 0.6, initialise, modules, modules_per_run)
