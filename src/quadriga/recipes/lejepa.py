"""LeJEPA: CIFAR-10 on a CPU, and the authors' ImageNet recipe."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.data.views.policies import PolicyChanges
from quadriga.engine.run_config import RunConfig
from quadriga.methods.lejepa import LeJEPAConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.recipes._self_supervised import cifar10_run, imagenet_run
from quadriga.schedules.curves import WarmupCosineConfig


def lejepa_cifar10(root: Path = Path("data/cifar10"), epochs: float = 7) -> RunConfig:
    """Train LeJEPA of a narrow ResNet-18 on CIFAR-10 at 32 px.

    Command: ``quadriga train lejepa_cifar10 data.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class.
    """
    objective = LeJEPAConfig(hidden_width=512, output_width=64, slices=256)
    return cifar10_run("lejepa_cifar10", objective, root, epochs)


def lejepa_vit_large(root: Path = Path("data/imagenet"), epochs: float = 100) -> RunConfig:
    """Train LeJEPA of a ViT-L/14 with the authors' ImageNet recipe: 2 large and 6 small views.

    Command: ``quadriga train lejepa_vit_large data.root=IMAGENET --ranks 8``. They name no batch;
    it is 512 here.
    """
    return imagenet_run(
        "lejepa_vit_large",
        ViTConfig.large(patch_px=14).override({"positions": "learned", "drop_path": 0.1}),
        LeJEPAConfig(),
        MultiCropConfig(
            crop_scale=(0.3, 1.0),
            local_crops=6,
            local_px=98,
            local_scale=(0.05, 0.3),
            augmentation="vicreg",
            every=PolicyChanges(solarise_probability=0.2),
        ),
        AdamWConfig(lr=5e-4, lr_batch=512, betas=(0.9, 0.999), weight_decay=0.05),
        WarmupCosineConfig(warmup_epochs=10, final_factor=1e-3),
        (root, epochs, 512),
    )
