"""DINO: CIFAR-10 on a CPU, and the paper's ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.dino import DINOConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import WarmupCosineConfig


def dino_cifar10(root: Path = Path("data/cifar10"), epochs: float = 6) -> RunConfig:
    """DINO of a narrow ResNet-18 on CIFAR-10 at 32 px.

    Command: ``quadriga train dino_cifar10 data.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class.
    """
    objective = DINOConfig(
        prototypes=1024,
        hidden_width=512,
        bottleneck_width=128,
        temperature_warmup_epochs=2,
        # The average of a run of 1200 steps has to be shorter than that of one of a million.
        momentum=0.97,
        frozen_epochs=0.5,
    )
    return cifar10_run("dino_cifar10", objective, root, epochs)


def dino_vit_small(root: Path = Path("data/imagenet"), epochs: float = 800) -> RunConfig:
    """DINO of a ViT-S/16 with the paper's ImageNet recipe: batch 1024, 2 large and 10 small crops.

    Command: ``quadriga train dino_vit_small data.root=IMAGENET --ranks 16``. The paper reports
    74.5 % kNN and 77.0 % linear probing after 800 epochs, with a weight decay that rises to 0.4.
    """
    return imagenet_run(
        "dino_vit_small",
        ViTConfig.small().override({"positions": "learned", "drop_path": 0.1}),
        DINOConfig(),
        MultiCropConfig(
            crop_scale=(0.25, 1.0),
            local_crops=10,
            local_px=96,
            local_scale=(0.05, 0.25),
            augmentation="dino",
        ),
        AdamWConfig(lr=5e-4, lr_batch=256, weight_decay=0.04),
        # From 0 to 2e-3, and down to 1e-5.
        WarmupCosineConfig(warmup_epochs=10, start_factor=0.0, final_factor=1e-5 / 2e-3),
        (root, epochs, 1024),
    )
