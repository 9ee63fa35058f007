"""Supervised vision transformers trained end to end: DeiT, and the stronger recipe of DeiT III."""

from __future__ import annotations

from pathlib import Path

from quadriga.data.images.digits import DigitsConfig
from quadriga.data.images.folder import ImageFolderConfig
from quadriga.data.parts.subsets import PartConfig
from quadriga.data.views.crops import ImageViewsConfig
from quadriga.data.views.shifts import ShiftedViewsConfig
from quadriga.data.views.supervised import SupervisedViewsConfig
from quadriga.engine.run_config import (
    EvaluationConfig,
    LoaderConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
)
from quadriga.evaluation.held_out import HeldOutConfig
from quadriga.methods.supervised import SupervisedConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.optim.lamb import LAMBConfig
from quadriga.recipes._imagenet import imagenet_run, imagenet_vit
from quadriga.schedules.curves import WarmupCosineConfig


def deit_digits(epochs: float = 20) -> RunConfig:
    """A small vision transformer on the embedded digits: half a minute on 2 cores.

    Command: ``quadriga train deit_digits``. Expected: accuracy about 98 %.
    """
    return RunConfig(
        name="deit_digits",
        model=ViTConfig(image_px=16, patch_px=4, width=48, depth=8, heads=3, positions="learned"),
        objective=SupervisedConfig(initialise="xavier_uniform"),
        data=DigitsConfig(image_px=16),
        views=ImageViewsConfig(
            image_px=16, crop_scale=(0.6, 1.0), flip_probability=0.0, test_crop_fraction=1.0
        ),
        optim=AdamWConfig(lr=2e-3, lr_batch=64, weight_decay=0.05),
        schedule=WarmupCosineConfig(warmup_epochs=2),
        train=TrainConfig(epochs=epochs, batch_size=64),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=20),
        evaluation=EvaluationConfig(protocols=(HeldOutConfig(batch_size=120),), workers=0),
    )


def deit_cifar10(
    root: Path = Path("data/cifar10"), fraction: float = 0.2, epochs: float = 16
) -> RunConfig:
    """A vision transformer of width 64 and 16 blocks on a fifth of CIFAR-10: 20 minutes a core.

    Command: ``quadriga train deit_cifar10 data.of.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class.
    """
    return RunConfig(
        name="deit_cifar10",
        model=ViTConfig(
            image_px=32,
            patch_px=4,
            width=64,
            depth=16,
            heads=4,
            positions="learned",
            drop_path=0.1,
        ),
        objective=SupervisedConfig(initialise="xavier_uniform"),
        data=PartConfig(of=ImageFolderConfig(root=root), fraction=fraction),
        views=ShiftedViewsConfig(image_px=32, shift_px=4),
        optim=AdamWConfig(lr=1e-3, lr_batch=64, weight_decay=0.05, clip_norm=1.0),
        schedule=WarmupCosineConfig(warmup_epochs=1),
        train=TrainConfig(
            epochs=epochs,
            batch_size=64,
            precision="auto",
            dataset_size=round(50_000 * fraction),
        ),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=50),
        evaluation=EvaluationConfig(protocols=(HeldOutConfig(batch_size=100),), workers=0),
    )


def deit_tiny(root: Path = Path("data/imagenet"), epochs: float = 300) -> RunConfig:
    """DeiT-Ti/16 at 224 px, without distillation.

    Command: ``quadriga train deit_tiny data.root=IMAGENET --ranks 8``.
    The reference reports 72.2 % top-1.
    """
    return imagenet_run("deit_tiny", imagenet_vit(ViTConfig.tiny(), 0.1), root, epochs, 1024, 5)


def deit_small(root: Path = Path("data/imagenet"), epochs: float = 300) -> RunConfig:
    """DeiT-S/16 at 224 px, without distillation.

    Command: ``quadriga train deit_small data.root=IMAGENET --ranks 8``.
    The reference reports 79.8 % top-1.
    """
    return imagenet_run("deit_small", imagenet_vit(ViTConfig.small(), 0.1), root, epochs, 1024, 5)


def deit_base(root: Path = Path("data/imagenet"), epochs: float = 300) -> RunConfig:
    """DeiT-B/16 at 224 px, without distillation.

    Command: ``quadriga train deit_base data.root=IMAGENET --ranks 8``.
    The reference reports 81.8 % top-1.
    """
    return imagenet_run("deit_base", imagenet_vit(ViTConfig.base(), 0.1), root, epochs, 1024, 5)


def _deit3(name: str, model: ViTConfig, root: Path, epochs: float) -> RunConfig:
    """Return the recipe of DeiT III (Touvron et al., ECCV 2022, arXiv:2204.07118, table 1)."""
    run = imagenet_run(name, model.override({"layer_scale": 1e-4}), root, epochs, 2048, 5)
    peak = 3e-3
    return run.model_copy(
        update={
            "objective": SupervisedConfig(loss="binary_cross_entropy", smoothing=0.0),
            "views": SupervisedViewsConfig(
                image_px=model.image_px,
                augment="three_augment",
                color_jitter=0.3,
                erase_probability=0.0,
                test_crop_fraction=1.0,
            ),
            "optim": LAMBConfig(lr=peak, lr_batch=2048, weight_decay=0.02, clip_norm=1.0),
            "schedule": WarmupCosineConfig(
                warmup_epochs=5, start_factor=1e-6 / peak, final_factor=1e-5 / peak
            ),
        }
    )


def deit3_base(root: Path = Path("data/imagenet"), epochs: float = 400) -> RunConfig:
    """ViT-B/16 at 224 px with the recipe of DeiT III: the fair end-to-end baseline.

    Command: ``quadriga train deit3_base data.root=IMAGENET --ranks 8``.
    The reference reports 83.5 % after 400 epochs, first at a lower resolution.
    """
    return _deit3("deit3_base", imagenet_vit(ViTConfig.base(), 0.1), root, epochs)


def deit3_large(root: Path = Path("data/imagenet"), epochs: float = 400) -> RunConfig:
    """ViT-L/16 at 224 px with the recipe of DeiT III.

    Command: ``quadriga train deit3_large data.root=IMAGENET --ranks 32``.
    """
    return _deit3("deit3_large", imagenet_vit(ViTConfig.large(), 0.4), root, epochs)


def deit3_huge(root: Path = Path("data/imagenet"), epochs: float = 400) -> RunConfig:
    """ViT-H/14 at 224 px with the recipe of DeiT III.

    Command: ``quadriga train deit3_huge data.root=IMAGENET --ranks 64``.
    """
    return _deit3("deit3_huge", imagenet_vit(ViTConfig.huge(), 0.5), root, epochs)
