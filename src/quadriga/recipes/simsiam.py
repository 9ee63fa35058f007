"""SimSiam: CIFAR-10 on a CPU, and the paper's ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.simsiam import SimSiamConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.optim.sgd import SGDConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import WarmupCosineConfig

_CONSTANT = ("predictor.",)
"""What keeps the peak learning rate (section 4.2 of the paper, table 1)."""


def simsiam_cifar10(root: Path = Path("data/cifar10"), epochs: float = 7) -> RunConfig:
    """SimSiam of a narrow ResNet-18 on CIFAR-10 at 32 px.

    Command: ``quadriga train simsiam_cifar10 data.root=CIFAR10_FOLDER``; the folder holds
    ``train`` and ``test`` with one folder of images per class.
    """
    objective = SimSiamConfig(output_width=512, hidden_width=128)
    config = cifar10_run("simsiam_cifar10", objective, root, epochs)
    return config.override({"optim.constant_lr": _CONSTANT})


def simsiam_resnet50(root: Path = Path("data/imagenet"), epochs: float = 100) -> RunConfig:
    """SimSiam of a ResNet-50 with the paper's ImageNet recipe: batch 512, SGD.

    Command: ``quadriga train simsiam_resnet50 data.root=IMAGENET --ranks 8``. The paper reports
    68.1 % linear probing after 100 epochs, and 71.3 % after 800.
    """
    return imagenet_run(
        "simsiam_resnet50",
        ResNetConfig(zero_init_residual=True),
        SimSiamConfig(statistics_group=512),
        MultiCropConfig(crop_scale=(0.2, 1.0), augmentation="moco_v2"),
        SGDConfig(lr=0.05, lr_batch=256, weight_decay=1e-4, constant_lr=_CONSTANT),
        WarmupCosineConfig(),
        (root, epochs, 512),
    )
