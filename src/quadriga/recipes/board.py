"""The board: every self-supervised method on CIFAR-10 with equal operations, by one protocol."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quadriga.contracts import ModelConfig
from quadriga.data.views.crops import ImageViewsConfig
from quadriga.engine.build import build_on_meta
from quadriga.engine.meters.cost import measure
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.methods.supervised import SupervisedConfig
from quadriga.recipes._self_supervised import CIFAR10_RESNET, cifar10_run
from quadriga.recipes.barlow_twins import barlow_twins_cifar10
from quadriga.recipes.byol import byol_cifar10
from quadriga.recipes.dino import dino_cifar10
from quadriga.recipes.dinov2 import dinov2_cifar10
from quadriga.recipes.ibot import CIFAR10_VIT, ibot_cifar10
from quadriga.recipes.ijepa import ijepa_cifar10
from quadriga.recipes.lejepa import lejepa_cifar10
from quadriga.recipes.mae import mae_cifar10
from quadriga.recipes.moco import moco_v2_cifar10
from quadriga.recipes.moco_v3 import moco_v3_cifar10
from quadriga.recipes.simclr import simclr_cifar10
from quadriga.recipes.simmim import simmim_cifar10
from quadriga.recipes.simsiam import simsiam_cifar10
from quadriga.recipes.swav import swav_cifar10
from quadriga.recipes.vicreg import vicreg_cifar10
from quadriga.workflow.graph import Node, Workflow

OPERATIONS = 190e12
"""Operations of the forward and backward passes of a flagship's run, meant for half an hour of a
core: nine epochs of SimCLR on the ResNet or six of iBOT on the vision transformer."""

HALF = 0.5
"""Share of a method that is no flagship."""


@dataclass(frozen=True, eq=False)
class Row:
    """One row: a method on one of the two encoders."""

    name: str
    recipe: Callable[[Path], RunConfig]
    model: ModelConfig = CIFAR10_RESNET
    share: float = 1.0
    """Share of `OPERATIONS`."""
    repeated: bool = False
    """Whether every seed is run, not the first one alone."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What else differs from the recipe."""

    def config(self, root: Path) -> RunConfig:
        """Return the recipe's run with the board's encoder, batch, precision and protocol."""
        config = self.recipe(root).model_copy(update={"model": self.model})
        return config.override(
            {
                "name": f"board_{self.name}",
                "train.batch_size": 256,
                "train.ranks": 1,
                "train.precision": "float32",
                "log.loggers": [],
                "evaluation.protocols": ["knn", "linear_probe"],
                "evaluation.precision": "float32",
                "evaluation.workers": 0,
                "checkpoint.keep": 1,
                **self.changes,
            }
        )


def _supervised(root: Path) -> RunConfig:
    config = cifar10_run("supervised_cifar10", SupervisedConfig(classes=10), root, 1)
    views = ImageViewsConfig(image_px=32, crop_scale=(0.4, 1.0), test_crop_fraction=1.0)
    return config.model_copy(update={"views": views})


_VIT = CIFAR10_VIT.override({"pool": "mean"})
"""One encoder for all: the class token of so small a model stays the same for all images for long,
and some methods do not train it."""

_SLOWER = {"optim.lr": 1e-3}
"""The vision transformer's learning rate in batches of 256."""

ROWS = (
    Row("simclr", simclr_cifar10, repeated=True),
    Row("barlow_twins", barlow_twins_cifar10, repeated=True),
    Row("byol", byol_cifar10, repeated=True),
    Row("vicreg", vicreg_cifar10),
    Row("moco_v3", moco_v3_cifar10),
    Row("simsiam", simsiam_cifar10),
    Row("swav", swav_cifar10),
    Row("dino", dino_cifar10, repeated=True),
    Row("lejepa", lejepa_cifar10),
    Row("moco_v2", moco_v2_cifar10, share=HALF),
    Row("supervised_resnet", _supervised),
    Row("ibot", ibot_cifar10, _VIT),
    Row("dinov2", dinov2_cifar10, _VIT),
    Row("dino_vit", dino_cifar10, _VIT, changes=_SLOWER),
    Row(
        "mae",
        mae_cifar10,
        _VIT,
        repeated=True,
        changes={"optim.lr": 2e-3, "optim.lr_batch": 256},
    ),
    Row("ijepa", ijepa_cifar10, _VIT.override({"class_token": False}), share=HALF),
    Row("simmim", simmim_cifar10, _VIT, share=HALF),
    Row("supervised_vit", _supervised, _VIT, changes=_SLOWER),
)


@functools.cache
def operations_per_sample(row: Row) -> float:
    """Return the operations of a sample's forward and backward passes, as the engine counts them.

    They include teachers, all crops and the comparisons within a step of 256.
    """
    config = row.config(Path("data/cifar10"))
    batch = config.views.build("train").example(config.train.batch_size, torch.device("meta"))
    cost = measure(build_on_meta(config), batch)
    return cost.model_flops / cost.samples


def board_cifar10(
    root: Path = Path("data/cifar10"), seeds: int = 2, share: float = 1.0
) -> Workflow:
    """Methods of self-supervision on CIFAR-10 with equal operations.

    Command: ``quadriga run board_cifar10 root=CIFAR10_FOLDER --slots 2``; the folder holds
    ``train`` and ``test`` with one folder of images per class. ``share=0.1`` makes all runs
    shorter. kNN and the linear probe see 10,000 training and 5,000 test images. Rows that are kept
    in the repository are left out by ``tools/board.py run``.

    Raises:
        UserError: `seeds` or `share` is too small.
    """
    if seeds < 1:
        raise UserError(f"seeds must be 1 or more, but is {seeds}")
    if share <= 0:
        raise UserError(f"share must be above 0, but is {share}")
    nodes = []
    for row in ROWS:
        config = row.config(root)
        samples = share * row.share * OPERATIONS / operations_per_sample(row)
        steps = max(1, round(samples / config.train.batch_size))
        whole = config.override({"train.steps": steps, "train.epochs": None})
        for seed in range(seeds if row.repeated else 1):
            name = row.name if seed == 0 else f"{row.name}_seed{seed}"
            nodes.append(Node(name, whole.override({"seed": seed})))
    return Workflow("board_cifar10", tuple(nodes), ROWS[0].name)
