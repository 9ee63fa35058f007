"""Deep Incubation (Ni et al., ICCV 2023): meta model, modules apart, assembly, fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quadriga.data.digits import DigitsConfig
from quadriga.data.image_views import ImageViewsConfig
from quadriga.engine.run_config import (
    CheckpointConfig,
    EvaluationConfig,
    LoaderConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
)
from quadriga.engine.workflow import REFERENCE, Node, Workflow
from quadriga.evaluation.held_out import HeldOutConfig
from quadriga.methods.supervised import SupervisedConfig
from quadriga.models.vit import ViTConfig
from quadriga.modular.assembly import AssemblyConfig
from quadriga.modular.hybrid import HybridConfig
from quadriga.modular.incubate import Start
from quadriga.optim.adamw import AdamWConfig
from quadriga.optim.schedules.warmup_cosine import WarmupCosineConfig


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
    """Return the runs of an incubation: one of the meta model, those of the modules, one more.

    Args:
        base: The target model's end-to-end run; each phase is this with overrides.
        incubation: The phases.
        prefix: What the nodes' names begin with.
        meta: A node that is the meta model already; none to train one.
    """
    count, depths = len(incubation.depths), incubation.depths
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
    """Cut a depth into modules that differ by at most one block; later ones are the deeper."""
    return tuple(depth * (i + 1) // modules - depth * i // modules for i in range(modules))


def deep_incubation_digits(
    modules: int = 4, initialise: Start = "function_preserving", modules_per_run: int = 1
) -> Workflow:
    """Four modules of two blocks on the embedded handwritten digits: about a minute on 2 cores.

    Command: ``quadriga run deep_incubation_digits --slots 2``. Expected: about 97 % before and
    after fine-tuning.
    """
    base = RunConfig(
        name="end_to_end",
        model=ViTConfig(
            image_px=16, patch_px=4, width=48, depth=2 * modules, heads=3, positions="learned"
        ),
        objective=SupervisedConfig(initialise="xavier_uniform"),
        data=DigitsConfig(image_px=16),
        views=ImageViewsConfig(
            image_px=16, crop_scale=(0.6, 1.0), flip_probability=0.0, test_crop_fraction=1.0
        ),
        optim=AdamWConfig(lr=2e-3, lr_batch=64, weight_decay=0.05),
        schedule=WarmupCosineConfig(warmup_epochs=2),
        train=TrainConfig(epochs=30, batch_size=64),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=20),
        checkpoint=CheckpointConfig(every_epochs=10),
        evaluation=EvaluationConfig(protocols=(HeldOutConfig(batch_size=120),), workers=0),
    )
    incubation = Incubation(
        depths=equal_depths(2 * modules, modules),
        initialise=initialise,
        modules_per_run=modules_per_run,
        module={"train.epochs": 10},
        finetune={"train.epochs": 10, "optim.lr": 1e-3, "schedule.warmup_epochs": 1},
    )
    nodes = incubate(base, incubation)
    return Workflow("deep_incubation_digits", tuple(nodes), nodes[-1].name, base)
