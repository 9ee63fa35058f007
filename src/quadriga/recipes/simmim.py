"""SimMIM of vision transformers: CIFAR-10 on a CPU, and the reference's ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.crops import ImageViewsConfig
from quadriga.engine.run_config import RunConfig
from quadriga.methods.simmim import SimMIMConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.recipes.ibot import CIFAR10_VIT
from quadriga.schedules.curves import StepDecayConfig


def simmim_cifar10(root: Path = Path("data/cifar10"), epochs: float = 6) -> RunConfig:
    """Train SimMIM of a small ViT on CIFAR-10 at 32 px, a quarter of an hour of one core.

    Command: ``quadriga train simmim_cifar10 data.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class.
    """
    model = CIFAR10_VIT.override({"pool": "mean"})
    views = ImageViewsConfig(image_px=32, crop_scale=(0.4, 1.0), test_crop_fraction=1.0)
    objective = SimMIMConfig(mask_px=8)
    return cifar10_run("simmim_cifar10", objective, root, epochs, 1e-3, model, views)


def simmim_vit_base(root: Path = Path("data/imagenet"), epochs: float = 800) -> RunConfig:
    """Train SimMIM of a ViT-B/16 with the reference's ImageNet recipe: batch 2048, 32 px cells.

    Command: ``quadriga train simmim_vit_base data.root=IMAGENET --ranks 16``. The paper reports
    83.8 % after fine-tuning.
    """
    model = ViTConfig.base().override(
        {"positions": "learned", "layer_scale": 0.1, "drop_path": 0.1}
    )
    return imagenet_run(
        "simmim_vit_base",
        model,
        SimMIMConfig(),
        ImageViewsConfig(crop_scale=(0.67, 1.0), interpolation="bilinear"),
        AdamWConfig(
            lr=1e-4,
            lr_batch=512,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            clip_norm=5.0,
            no_decay=("norm", "bias", "position", "token"),
        ),
        # From 2e-6 to 4e-4, and 4e-5 in the last eighth.
        StepDecayConfig(warmup_epochs=10, start_factor=0.005, milestone_epochs=(700,), gamma=0.1),
        (root, epochs, 2048),
    )
