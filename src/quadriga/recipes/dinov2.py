"""DINOv2: CIFAR-10 on a CPU, and ImageNet with the published settings."""

from __future__ import annotations

import math
from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.dinov2 import DINOv2Config
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.recipes.ibot import CIFAR10_VIT
from quadriga.schedules.curves import WarmupCosineConfig


def dinov2_cifar10(root: Path = Path("data/cifar10"), epochs: float = 6) -> RunConfig:
    """Train DINOv2 of a small ViT on CIFAR-10 at 32 px.

    Command: ``quadriga train dinov2_cifar10 data.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class.
    """
    objective = DINOv2Config(
        prototypes=512,
        hidden_width=256,
        bottleneck_width=64,
        temperature_warmup_epochs=2,
        # The average of a run of 1200 steps has to be shorter than that of one of a million.
        momentum=0.97,
        frozen_epochs=0.5,
    )
    return cifar10_run("dinov2_cifar10", objective, root, epochs, 1e-3, CIFAR10_VIT)


def dinov2_vit_large(root: Path = Path("data/imagenet"), epochs: float = 200) -> RunConfig:
    """Train DINOv2 of a ViT-L/16 on ImageNet: batch 2048, 125,000 steps, 8 small crops.

    Command: ``quadriga train dinov2_vit_large data.root=IMAGENET --ranks 32``. The authors report
    81.6 % kNN and 82.9 % linear probing of their short ImageNet run, with a weight decay that rises
    to 0.4.
    """
    return _imagenet("dinov2_vit_large", ViTConfig.large(), 0.3, root, epochs)


def dinov2_vit_small(root: Path = Path("data/imagenet"), epochs: float = 200) -> RunConfig:
    """Train DINOv2 of a ViT-S/16 on ImageNet with the settings of the ViT-L/16.

    Command: ``quadriga train dinov2_vit_small data.root=IMAGENET --ranks 8``. No result is known:
    the authors distil their small models from a large one.
    """
    return _imagenet("dinov2_vit_small", ViTConfig.small(), 0.1, root, epochs)


def _imagenet(
    name: str, model: ViTConfig, drop_path: float, root: Path, epochs: float
) -> RunConfig:
    # The authors count in epochs of 1250 steps, of which one has the samples of two of ImageNet.
    objective = DINOv2Config(temperature_warmup_epochs=60, frozen_epochs=2)
    changes = {"positions": "learned", "drop_path": drop_path, "layer_scale": 1e-5, "registers": 4}
    optim = AdamWConfig(
        lr=4e-3,
        lr_batch=1024,
        lr_scaling="sqrt",
        weight_decay=0.04,
        layer_decay=0.9,
        lr_scales={"patch_projection": 0.2},
        clip_norm=3.0,
    )
    views = MultiCropConfig(
        crop_scale=(0.32, 1.0),
        local_crops=8,
        local_px=96,
        local_scale=(0.05, 0.32),
        augmentation="dino",
    )
    schedule = WarmupCosineConfig(
        warmup_epochs=20, start_factor=0.0, final_factor=1e-6 / (4e-3 * math.sqrt(2))
    )
    return imagenet_run(
        name, model.override(changes), objective, views, optim, schedule, (root, epochs, 2048)
    )
