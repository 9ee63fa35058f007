"""SimCLR: CIFAR-10 on a CPU, and the paper's ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.simclr import SimCLRConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.optim.lamb import LARSConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import WarmupCosineConfig


def simclr_cifar10(root: Path = Path("data/cifar10"), epochs: float = 7) -> RunConfig:
    """SimCLR of a narrow ResNet-18 on CIFAR-10 at 32 px.

    Command: ``quadriga train simclr_cifar10 data.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class.
    """
    objective = SimCLRConfig(temperature=0.5, hidden_width=512, output_width=64)
    return cifar10_run("simclr_cifar10", objective, root, epochs)


def simclr_resnet50(root: Path = Path("data/imagenet"), epochs: float = 100) -> RunConfig:
    """SimCLR of a ResNet-50 with the paper's ImageNet recipe: batch 4096, LARS.

    Command: ``quadriga train simclr_resnet50 data.root=IMAGENET --ranks 16``. The paper reports
    69.3 % linear probing after 1000 epochs.
    """
    return imagenet_run(
        "simclr_resnet50",
        ResNetConfig(zero_init_residual=True),
        SimCLRConfig(statistics_group=4096),
        MultiCropConfig(crop_scale=(0.08, 1.0), augmentation="simclr"),
        LARSConfig(lr=0.3, lr_batch=256, weight_decay=1e-6),
        WarmupCosineConfig(warmup_epochs=10),
        (root, epochs, 4096),
    )
