"""VICReg: CIFAR-10 on a CPU, and the paper's ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.vicreg import VICRegConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.optim.lamb import LARSConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import WarmupCosineConfig


def vicreg_cifar10(root: Path = Path("data/cifar10"), epochs: float = 7) -> RunConfig:
    """VICReg of a narrow ResNet-18 on CIFAR-10 at 32 px.

    Command: ``quadriga train vicreg_cifar10 data.root=CIFAR10_FOLDER``; the folder holds
    ``train`` and ``test`` with one folder of images per class.
    """
    objective = VICRegConfig(hidden_width=512, output_width=512)
    return cifar10_run("vicreg_cifar10", objective, root, epochs)


def vicreg_resnet50(root: Path = Path("data/imagenet"), epochs: float = 1000) -> RunConfig:
    """VICReg of a ResNet-50 with the paper's ImageNet recipe: batch 2048, LARS.

    Command: ``quadriga train vicreg_resnet50 data.root=IMAGENET --ranks 32``. The paper reports
    73.2 % linear probing after 1000 epochs.
    """
    return imagenet_run(
        "vicreg_resnet50",
        ResNetConfig(zero_init_residual=True),
        VICRegConfig(statistics_group=2048),
        MultiCropConfig(crop_scale=(0.08, 1.0), augmentation="vicreg"),
        LARSConfig(lr=0.2, lr_batch=256, weight_decay=1e-6),
        # The rate ends at 0.002.
        WarmupCosineConfig(warmup_epochs=10, start_factor=0.0, final_factor=0.002 / 1.6),
        (root, epochs, 2048),
    )
