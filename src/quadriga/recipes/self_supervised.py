"""Methods of two views on the embedded digits: about a minute each on 2 cores."""

from __future__ import annotations

from quadriga.contracts import ModelConfig, ObjectiveConfig
from quadriga.data.images.digits import DigitsConfig
from quadriga.data.views.crops import ImageViewsConfig
from quadriga.engine.run_config import (
    EvaluationConfig,
    LoaderConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
)
from quadriga.evaluation.knn import KNNConfig
from quadriga.evaluation.linear_probe import LinearProbeConfig
from quadriga.methods.dino import DINOConfig
from quadriga.methods.moco_v3 import MoCoV3Config
from quadriga.methods.swav import SwAVConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.schedules.curves import WarmupCosineConfig

_VIT = ViTConfig(image_px=32, patch_px=4, width=64, depth=4, heads=4)


def moco_v3_digits(epochs: float = 8) -> RunConfig:
    """MoCo v3 of a small ViT on the embedded handwritten digits.

    Command: ``quadriga train moco_v3_digits``.
    """
    objective = MoCoV3Config(hidden_width=256, output_width=64)
    return _digits("moco_v3_digits", _VIT, objective, epochs, lr=1e-3)


def dino_digits(epochs: float = 8) -> RunConfig:
    """DINO of a small ViT on the embedded handwritten digits.

    Command: ``quadriga train dino_digits``.
    """
    objective = DINOConfig(
        prototypes=256,
        hidden_width=256,
        bottleneck_width=64,
        temperature_warmup_epochs=5,
        momentum=0.98,
    )
    # The class token of so small a model is the same for all images until late.
    model = _VIT.override({"pool": "mean"})
    return _digits("dino_digits", model, objective, epochs, lr=1e-3)


def swav_digits(epochs: float = 8) -> RunConfig:
    """SwAV of a narrow ResNet-18 on the embedded handwritten digits.

    Command: ``quadriga train swav_digits``.
    """
    model = ResNetConfig(image_px=32, depth=18, stem_width=8, stem="small")
    objective = SwAVConfig(
        prototypes=64, hidden_width=128, output_width=32, queue=256, queue_start_epoch=5
    )
    return _digits("swav_digits", model, objective, epochs, lr=2e-3)


def _digits(
    name: str, model: ModelConfig, objective: ObjectiveConfig, epochs: float, lr: float
) -> RunConfig:
    return RunConfig(
        name=name,
        model=model,
        objective=objective,
        data=DigitsConfig(image_px=32),
        views=ImageViewsConfig(
            image_px=32,
            crops=2,
            crop_scale=(0.4, 1.0),
            flip_probability=0.0,
            test_crop_fraction=1.0,
        ),
        optim=AdamWConfig(lr=lr, lr_batch=64, weight_decay=0.05, clip_norm=3.0),
        schedule=WarmupCosineConfig(warmup_epochs=2),
        train=TrainConfig(epochs=epochs, batch_size=64, ranks=2, precision="auto"),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=20),
        evaluation=EvaluationConfig(protocols=(KNNConfig(), LinearProbeConfig())),
    )
