"""I-JEPA: CIFAR-10 on a CPU, and the reference's ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.crops import ImageViewsConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.ijepa import IJEPAConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.recipes.ibot import CIFAR10_VIT
from quadriga.schedules.curves import WarmupCosineConfig

_OWN = {"pool": "mean", "class_token": False}


def ijepa_cifar10(root: Path = Path("data/cifar10"), epochs: float = 6) -> RunConfig:
    """Train I-JEPA of a small ViT on CIFAR-10 at 32 px.

    Command: ``quadriga train ijepa_cifar10 data.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class.
    """
    # The average of a run of 1200 steps has to be shorter than that of one of a million.
    objective = IJEPAConfig(predictor_width=48, predictor_depth=2, predictor_heads=3, momentum=0.97)
    views = ImageViewsConfig(image_px=32, crop_scale=(0.4, 1.0), test_crop_fraction=1.0)
    model = CIFAR10_VIT.override(_OWN)
    return cifar10_run("ijepa_cifar10", objective, root, epochs, 1e-3, model, views)


def ijepa_vit_huge(root: Path = Path("data/imagenet"), epochs: float = 300) -> RunConfig:
    """Train I-JEPA of a ViT-H/14 with the reference's ImageNet recipe: batch 2048.

    Command: ``quadriga train ijepa_vit_huge data.root=IMAGENET --ranks 16``. The paper reports
    79.3 % linear probing, with a weight decay that rises from 0.04 to 0.4.
    """
    return imagenet_run(
        "ijepa_vit_huge",
        ViTConfig.huge().override(_OWN),
        IJEPAConfig(),
        ImageViewsConfig(crop_scale=(0.3, 1.0), interpolation="bilinear", flip_probability=0.0),
        AdamWConfig(lr=1e-3, lr_batch=2048, betas=(0.9, 0.999), weight_decay=0.04),
        # From 2e-4 to 1e-3, and down to 1e-6.
        WarmupCosineConfig(warmup_epochs=40, start_factor=0.2, final_factor=1e-3),
        (root, epochs, 2048),
    )
