"""Mixtures of tasks: classification of digits and a masked autoencoder of synthetic shapes."""

from __future__ import annotations

from quadriga.data.images.clutter import ClutterConfig
from quadriga.data.images.digits import DigitsConfig
from quadriga.data.parts.mixture import MixtureConfig, MixtureViewsConfig, TaskData
from quadriga.data.views.crops import ImageViewsConfig
from quadriga.engine.run_config import LoaderConfig, LogConfig, RunConfig, TrainConfig
from quadriga.methods import mixture
from quadriga.methods.mae import MAEConfig
from quadriga.methods.supervised import SupervisedConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.schedules.curves import WarmupCosineConfig


def mixture_digits(steps: int = 200) -> RunConfig:
    """Digits to classify and shapes to fill in, drawn 2 to 1: seconds on 2 cores.

    Command: ``quadriga train mixture_digits``.
    """
    views = ImageViewsConfig(
        image_px=16, crop_scale=(0.6, 1.0), flip_probability=0.0, test_crop_fraction=1.0
    )
    return RunConfig(
        name="mixture_digits",
        model=ViTConfig(image_px=16, patch_px=4, width=48, depth=2, heads=3, pool="mean"),
        objective=mixture.MixtureConfig(
            tasks={
                "digits": mixture.Task(objective=SupervisedConfig()),
                "shapes": mixture.Task(
                    objective=MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2),
                    model=ViTConfig(image_px=24, patch_px=4, width=48, depth=2, heads=3),
                ),
            }
        ),
        data=MixtureConfig(
            tasks={
                "digits": TaskData(data=DigitsConfig(image_px=16), batch_size=16, weight=2),
                "shapes": TaskData(data=ClutterConfig(train_samples=1000), batch_size=10),
            },
            blocks=4,
        ),
        views=MixtureViewsConfig(
            tasks={"digits": views, "shapes": views.override({"image_px": 24})}
        ),
        optim=AdamWConfig(lr=2e-3, lr_batch=56, weight_decay=0.05),
        schedule=WarmupCosineConfig(warmup_steps=20),
        train=TrainConfig(steps=steps, batch_size=56),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=20),
    )
