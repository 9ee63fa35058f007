"""What the recipes of self-supervised methods on two or more views have in common."""

from __future__ import annotations

from pathlib import Path

from quadriga.contracts import (
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    ViewsConfig,
)
from quadriga.data.images.folder import ImageFolderConfig
from quadriga.data.views.multi_crop import MultiCropConfig
from quadriga.data.views.policies import PolicyChanges
from quadriga.engine.run_config import (
    EvaluationConfig,
    LoaderConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
)
from quadriga.evaluation.knn import KNNConfig
from quadriga.evaluation.linear_probe import LinearProbeConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.schedules.curves import WarmupCosineConfig

CIFAR10_RESNET = ResNetConfig(image_px=32, depth=18, stem_width=16, stem="small")
"""The encoder of the CIFAR-10 recipes, 0.7 M parameters."""

_PROTOCOLS = EvaluationConfig(protocols=(KNNConfig(), LinearProbeConfig()))


def cifar10_views() -> MultiCropConfig:
    """Return two views of 32 px in the colours of SimCLR's runs on CIFAR-10, without blur.

    They have half the strength of its ImageNet runs (Chen et al., 2020, appendix B.9).
    """
    return MultiCropConfig(
        image_px=32,
        crop_scale=(0.2, 1.0),
        augmentation="moco_v2",
        every=PolicyChanges(blur_probability=0.0),
        test_crop_fraction=1.0,
    )


def cifar10_run(
    name: str,
    objective: ObjectiveConfig,
    root: Path,
    epochs: float,
    lr: float = 2e-3,
    model: ModelConfig = CIFAR10_RESNET,
    views: ViewsConfig | None = None,
) -> RunConfig:
    """Return a run on CIFAR-10 at 32 px in batches of 256, with AdamW; `views`: two by default."""
    return RunConfig(
        name=name,
        model=model,
        objective=objective,
        data=ImageFolderConfig(root=root),
        views=views or cifar10_views(),
        optim=AdamWConfig(lr=lr, lr_batch=256, weight_decay=0.05),
        schedule=WarmupCosineConfig(warmup_steps=100),
        train=TrainConfig(epochs=epochs, batch_size=256, dataset_size=50_000),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=20),
        evaluation=_PROTOCOLS.override({"train_samples": 10_000, "test_samples": 5_000}),
    )


def imagenet_run(
    name: str,
    model: ModelConfig,
    objective: ObjectiveConfig,
    views: ViewsConfig,
    optim: OptimizerConfig,
    schedule: ScheduleConfig,
    train: tuple[Path, float, int],
) -> RunConfig:
    """Return a run on ImageNet.

    Args:
        name: The recipe's name.
        model: The encoder.
        objective: The method.
        views: What it sees of an image.
        optim: The optimizer.
        schedule: Its schedule.
        train: Folder, epochs and batch size.
    """
    root, epochs, batch_size = train
    return RunConfig(
        name=name,
        model=model,
        objective=objective,
        data=ImageFolderConfig(root=root),
        views=views,
        optim=optim,
        schedule=schedule,
        train=TrainConfig(epochs=epochs, batch_size=batch_size, dataset_size=1_281_167),
        loader=LoaderConfig(workers=8),
        log=LogConfig(every_steps=100),
        evaluation=_PROTOCOLS,
    )
