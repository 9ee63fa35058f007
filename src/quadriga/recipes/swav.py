"""SwAV: CIFAR-10 on a CPU, and the paper's ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.swav import SwAVConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.optim.lamb import LARSConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import WarmupCosineConfig


def swav_cifar10(root: Path = Path("data/cifar10"), epochs: float = 7) -> RunConfig:
    """SwAV of a narrow ResNet-18 on CIFAR-10 at 32 px.

    Command: ``quadriga train swav_cifar10 data.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class.
    """
    objective = SwAVConfig(prototypes=256, hidden_width=512, output_width=64, frozen_epochs=0.5)
    return cifar10_run("swav_cifar10", objective, root, epochs)


def swav_resnet50(root: Path = Path("data/imagenet"), epochs: float = 800) -> RunConfig:
    """SwAV of a ResNet-50 with the paper's ImageNet recipe: batch 4096, 2 large and 6 small crops.

    Command: ``quadriga train swav_resnet50 data.root=IMAGENET --ranks 64``. The paper reports
    75.3 % linear probing after 800 epochs.
    """
    return imagenet_run(
        "swav_resnet50",
        ResNetConfig(),
        SwAVConfig(statistics_group=4096),
        MultiCropConfig(
            crop_scale=(0.14, 1.0),
            local_crops=6,
            local_px=96,
            local_scale=(0.05, 0.14),
            augmentation="swav",
        ),
        LARSConfig(lr=0.3, lr_batch=256, weight_decay=1e-6),
        # From 0.3 to 4.8, and down to 0.0048.
        WarmupCosineConfig(warmup_epochs=10, start_factor=0.3 / 4.8, final_factor=1e-3),
        (root, epochs, 4096),
    )
