"""End-to-end fine-tuning of a pre-trained vision transformer, for ``quadriga finetune``.

Trained alone, with ``quadriga train``, they start from random weights.
"""

from __future__ import annotations

from pathlib import Path

from quadriga.data.images.folder import ImageFolderConfig
from quadriga.data.views.supervised import SupervisedViewsConfig
from quadriga.engine.run_config import (
    CheckpointConfig,
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
from quadriga.recipes._imagenet import IMAGENET_SAMPLES, imagenet_vit
from quadriga.schedules.curves import WarmupCosineConfig

BEST = CheckpointConfig(keep_best="held_out.accuracy", best_is="highest")


def finetune_small(root: Path = Path("data/images"), epochs: float = 20) -> RunConfig:
    """Fine-tuning on up to some 100,000 images: crops and flips, layer decay 0.75.

    Command: ``quadriga finetune RUN_OR_WEIGHTS data.root=IMAGES``.
    """
    return RunConfig(
        name="finetune_small",
        model=imagenet_vit(ViTConfig.small(), 0.1),
        objective=SupervisedConfig(),
        data=ImageFolderConfig(root=root),
        views=SupervisedViewsConfig(
            crop_scale=(0.35, 1.0), augment="none", mixup=0, cutmix=0, erase_probability=0
        ),
        optim=AdamWConfig(lr=5e-4, lr_batch=256, weight_decay=0.05, layer_decay=0.75),
        schedule=WarmupCosineConfig(warmup_epochs=1, final_factor=0.01),
        train=TrainConfig(epochs=epochs, batch_size=64, dataset_size=50_000),
        loader=LoaderConfig(workers=2),
        log=LogConfig(every_steps=20),
        checkpoint=BEST,
        evaluation=EvaluationConfig(
            protocols=(HeldOutConfig(batch_size=64),), every_epochs=1, workers=2
        ),
    )


def finetune_vit_base(root: Path = Path("data/imagenet"), epochs: float = 100) -> RunConfig:
    """MAE's fine-tuning of ViT-B on ImageNet (He et al., CVPR 2022, table 9).

    Command: ``quadriga finetune RUN data.root=IMAGENET --recipe finetune_vit_base --ranks 8``.
    The paper reports 83.6 % after 1600 epochs of pre-training. Its code has a learning rate of 5e-4
    and a layer decay of 0.65, a norm after the pooling and a classifier that starts near zero.
    """
    peak = 1e-3 * 1024 / 256
    return RunConfig(
        name="finetune_vit_base",
        model=imagenet_vit(ViTConfig.base(), 0.1).override({"pool": "mean"}),
        objective=SupervisedConfig(),
        data=ImageFolderConfig(root=root),
        views=SupervisedViewsConfig(),
        optim=AdamWConfig(lr=1e-3, lr_batch=256, weight_decay=0.05, layer_decay=0.75),
        schedule=WarmupCosineConfig(warmup_epochs=5, start_factor=0, final_factor=1e-6 / peak),
        train=TrainConfig(epochs=epochs, batch_size=1024, dataset_size=IMAGENET_SAMPLES),
        loader=LoaderConfig(workers=8),
        log=LogConfig(every_steps=100),
        checkpoint=BEST,
        evaluation=EvaluationConfig(
            protocols=(HeldOutConfig(batch_size=256),), every_epochs=1, workers=8
        ),
    )
