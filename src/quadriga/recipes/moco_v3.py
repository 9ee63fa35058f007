"""MoCo v3: CIFAR-10 on a CPU, and the paper's ImageNet recipes."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.moco_v3 import MoCoV3Config
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.optim.lamb import LARSConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import WarmupCosineConfig


def moco_v3_cifar10(root: Path = Path("data/cifar10"), epochs: float = 6) -> RunConfig:
    """MoCo v3 of a narrow ResNet-18 on CIFAR-10 at 32 px.

    Command: ``quadriga train moco_v3_cifar10 data.root=CIFAR10_FOLDER``; the folder holds
    ``train`` and ``test`` with one folder of images per class.
    """
    objective = MoCoV3Config(momentum=0.97, hidden_width=512, output_width=128)
    return cifar10_run("moco_v3_cifar10", objective, root, epochs)


def moco_v3_vit_small(root: Path = Path("data/imagenet"), epochs: float = 300) -> RunConfig:
    """MoCo v3 of a ViT-S/16 of 12 heads with the paper's ImageNet recipe: batch 4096, AdamW.

    Command: ``quadriga train moco_v3_vit_small data.root=IMAGENET --ranks 8``.
    """
    return _vit("moco_v3_vit_small", ViTConfig.small().override({"heads": 12}), root, epochs)


def moco_v3_vit_base(root: Path = Path("data/imagenet"), epochs: float = 300) -> RunConfig:
    """MoCo v3 of a ViT-B/16 with the paper's ImageNet recipe: batch 4096, AdamW.

    Command: ``quadriga train moco_v3_vit_base data.root=IMAGENET --ranks 16``. The paper reports
    76.7 % linear probing after 300 epochs.
    """
    return _vit("moco_v3_vit_base", ViTConfig.base(), root, epochs)


def moco_v3_resnet50(root: Path = Path("data/imagenet"), epochs: float = 100) -> RunConfig:
    """MoCo v3 of a ResNet-50 with the ImageNet recipe of the paper's code: batch 4096, LARS.

    Command: ``quadriga train moco_v3_resnet50 data.root=IMAGENET --ranks 16``. The authors report
    68.9 % linear probing after 100 epochs. For 300 and 1000 epochs they take
    ``objective.momentum=0.996 optim.lr=0.3 optim.weight_decay=1.5e-6``.
    """
    return imagenet_run(
        "moco_v3_resnet50",
        ResNetConfig(),
        MoCoV3Config(temperature=1.0, statistics_group=4096),
        MultiCropConfig(augmentation="moco_v3"),
        LARSConfig(lr=0.6, lr_batch=256, weight_decay=1e-6),
        WarmupCosineConfig(warmup_epochs=10, start_factor=0.0),
        (root, epochs, 4096),
    )


def _vit(name: str, model: ViTConfig, root: Path, epochs: float) -> RunConfig:
    return imagenet_run(
        name,
        model,
        MoCoV3Config(),
        MultiCropConfig(crop_scale=(0.08, 1.0), augmentation="moco_v3"),
        AdamWConfig(lr=1.5e-4, lr_batch=256, weight_decay=0.1, no_decay=()),
        WarmupCosineConfig(warmup_epochs=40, start_factor=0.0),
        (root, epochs, 4096),
    )
