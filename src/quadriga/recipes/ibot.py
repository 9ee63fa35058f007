"""iBOT: CIFAR-10 on a CPU, and the paper's ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.ibot import IBOTConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import WarmupCosineConfig

CIFAR10_VIT = ViTConfig(image_px=32, patch_px=4, width=96, depth=4, heads=3)
"""The encoder of the CIFAR-10 recipes of masked patches, 0.45 M parameters: one core shows it the
data six times in the operations of a row of the board."""


def ibot_cifar10(root: Path = Path("data/cifar10"), epochs: float = 6) -> RunConfig:
    """Train iBOT of a small ViT on CIFAR-10 at 32 px.

    Command: ``quadriga train ibot_cifar10 data.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class.
    """
    objective = IBOTConfig(
        prototypes=512,
        hidden_width=256,
        bottleneck_width=64,
        temperature_warmup_epochs=2,
        # The average of a run of 1200 steps has to be shorter than that of one of a million.
        momentum=0.97,
        frozen_epochs=0.5,
    )
    return cifar10_run("ibot_cifar10", objective, root, epochs, 1e-3, CIFAR10_VIT)


def ibot_vit_small(root: Path = Path("data/imagenet"), epochs: float = 800) -> RunConfig:
    """Train iBOT of a ViT-S/16 with the paper's ImageNet recipe: batch 1024, 10 small crops.

    Command: ``quadriga train ibot_vit_small data.root=IMAGENET --ranks 16``. The paper reports
    75.2 % kNN and 77.9 % linear probing after 800 epochs, with a weight decay that rises to 0.4.
    """
    return imagenet_run(
        "ibot_vit_small",
        ViTConfig.small().override({"positions": "learned", "drop_path": 0.1}),
        IBOTConfig(),
        MultiCropConfig(
            crop_scale=(0.25, 1.0),
            local_crops=10,
            local_px=96,
            local_scale=(0.05, 0.25),
            augmentation="dino",
        ),
        AdamWConfig(lr=5e-4, lr_batch=256, weight_decay=0.04, clip_norm=3.0),
        # From 0 to 2e-3, and down to 1e-6.
        WarmupCosineConfig(warmup_epochs=10, start_factor=0.0, final_factor=1e-6 / 2e-3),
        (root, epochs, 1024),
    )
