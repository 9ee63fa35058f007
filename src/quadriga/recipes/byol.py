"""BYOL: CIFAR-10 on a CPU, and the paper's ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.byol import BYOLConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.optim.lamb import LARSConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import WarmupCosineConfig


def byol_cifar10(root: Path = Path("data/cifar10"), epochs: float = 6) -> RunConfig:
    """BYOL of a narrow ResNet-18 on CIFAR-10 at 32 px.

    Command: ``quadriga train byol_cifar10 data.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class.
    """
    # The average of a run of 1200 steps has to be shorter than that of one of 300,000.
    objective = BYOLConfig(momentum=0.97, hidden_width=512, output_width=128)
    return cifar10_run("byol_cifar10", objective, root, epochs)


def byol_resnet50(root: Path = Path("data/imagenet"), epochs: float = 1000) -> RunConfig:
    """BYOL of a ResNet-50 with the paper's ImageNet recipe: batch 4096, LARS.

    Command: ``quadriga train byol_resnet50 data.root=IMAGENET --ranks 16``. The paper reports
    74.3 % linear probing after 1000 epochs.
    """
    return imagenet_run(
        "byol_resnet50",
        ResNetConfig(),
        BYOLConfig(statistics_group=4096),
        MultiCropConfig(crop_scale=(0.08, 1.0), augmentation="byol"),
        LARSConfig(lr=0.2, lr_batch=256, weight_decay=1.5e-6),
        WarmupCosineConfig(warmup_epochs=10, start_factor=0.0),
        (root, epochs, 4096),
    )
