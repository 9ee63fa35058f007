"""Barlow Twins: CIFAR-10 on a CPU, and the paper's ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.barlow_twins import BarlowTwinsConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.optim.lamb import LARSConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import WarmupCosineConfig


def barlow_twins_cifar10(root: Path = Path("data/cifar10"), epochs: float = 7) -> RunConfig:
    """Barlow Twins of a narrow ResNet-18 on CIFAR-10 at 32 px.

    Command: ``quadriga train barlow_twins_cifar10 data.root=CIFAR10_FOLDER``; the folder holds
    ``train`` and ``test`` with one folder of images per class.
    """
    objective = BarlowTwinsConfig(hidden_width=512, output_width=512)
    return cifar10_run("barlow_twins_cifar10", objective, root, epochs)


def barlow_twins_resnet50(root: Path = Path("data/imagenet"), epochs: float = 1000) -> RunConfig:
    """Barlow Twins of a ResNet-50 with the paper's ImageNet recipe: batch 2048, LARS.

    Command: ``quadriga train barlow_twins_resnet50 data.root=IMAGENET --ranks 32``. The paper
    reports 73.2 % linear probing after 1000 epochs.
    """
    return imagenet_run(
        "barlow_twins_resnet50",
        ResNetConfig(zero_init_residual=True),
        BarlowTwinsConfig(statistics_group=2048),
        MultiCropConfig(crop_scale=(0.08, 1.0), augmentation="barlow_twins"),
        # 0.2 for weights; 0.0048 for offsets and factors, all of which are in normalisations.
        LARSConfig(lr=0.2, lr_batch=256, weight_decay=1.5e-6, lr_scales={"norm": 0.024}),
        WarmupCosineConfig(warmup_epochs=10, start_factor=0.0, final_factor=1e-3),
        (root, epochs, 2048),
    )
