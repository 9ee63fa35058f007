"""What the supervised ImageNet recipes have in common."""

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
from quadriga.schedules.curves import WarmupCosineConfig

IMAGENET_SAMPLES = 1_281_167


def imagenet_vit(model: ViTConfig, drop_path: float) -> ViTConfig:
    """Return `model` with learned positions, as in DeiT, and with `drop_path`."""
    return model.override({"positions": "learned", "drop_path": drop_path})


def imagenet_run(
    name: str, model: ViTConfig, root: Path, epochs: float, batch_size: int, warmup_epochs: float
) -> RunConfig:
    """Return the DeiT recipe: AdamW with 5e-4 for 512 samples, RandAugment, mixup, cutmix.

    The learning rate starts at 1e-6 and ends at 1e-5; as in the reference, these two are not
    scaled with the batch.
    """
    peak = 5e-4 * batch_size / 512
    return RunConfig(
        name=name,
        model=model,
        objective=SupervisedConfig(),
        data=ImageFolderConfig(root=root),
        views=SupervisedViewsConfig(image_px=model.image_px),
        optim=AdamWConfig(lr=5e-4, lr_batch=512, weight_decay=0.05),
        schedule=WarmupCosineConfig(
            warmup_epochs=warmup_epochs, start_factor=1e-6 / peak, final_factor=1e-5 / peak
        ),
        train=TrainConfig(
            epochs=epochs, batch_size=batch_size, repeats=3, dataset_size=IMAGENET_SAMPLES
        ),
        loader=LoaderConfig(workers=8),
        log=LogConfig(every_steps=100),
        checkpoint=CheckpointConfig(keep_best="held_out.accuracy", best_is="highest"),
        evaluation=EvaluationConfig(
            protocols=(HeldOutConfig(batch_size=256),), every_epochs=1, workers=8
        ),
    )
