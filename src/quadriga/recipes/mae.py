"""Masked autoencoders: the embedded digits, CIFAR-10, and the reference's ImageNet recipes.

The two-stage workflows train most epochs on small images and the last ones on large ones.

Sequences are short for most of the training. The second run starts from the weights of the first,
with its tables of positions resampled to the finer grid (Touvron et al., "Fixing the train-test
resolution discrepancy", NeurIPS 2019; CLIP and EVA end their pre-training in the same way).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quadriga.data.images.digits import DigitsConfig
from quadriga.data.images.folder import ImageFolderConfig
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
from quadriga.evaluation.reconstruction import ReconstructionConfig
from quadriga.methods.mae import MAEConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.schedules.curves import WarmupCosineConfig
from quadriga.workflow.graph import Node, Workflow

NO_DECAY = ("norm", "bias", "position", "register_token")
"""What does not decay: as in the reference, class and mask tokens do."""

PROTOCOLS = EvaluationConfig(
    protocols=(KNNConfig(), LinearProbeConfig(), ReconstructionConfig()),
)


def mae_digits(epochs: float = 50) -> RunConfig:
    """MAE on the embedded handwritten digits: the demo, two minutes on 2 cores.

    Command: ``quadriga train mae_digits``. Expected: kNN about 90 % against 72 % for the random
    encoder, linear probe about 97 % against 93 %.
    """
    return RunConfig(
        name="mae_digits",
        model=ViTConfig(image_px=32, patch_px=4, width=96, depth=4, heads=3, pool="mean"),
        objective=MAEConfig(decoder_width=64, decoder_depth=2, decoder_heads=4),
        data=DigitsConfig(image_px=32),
        views=ImageViewsConfig(
            image_px=32, crop_scale=(0.6, 1.0), flip_probability=0.0, test_crop_fraction=1.0
        ),
        optim=AdamWConfig(lr=2e-3, lr_batch=64, weight_decay=0.05, no_decay=NO_DECAY),
        schedule=WarmupCosineConfig(warmup_epochs=3),
        train=TrainConfig(epochs=epochs, batch_size=64, ranks=2, precision="auto"),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=20),
        evaluation=PROTOCOLS,
    )


def mae_cifar10(root: Path = Path("data/cifar10"), epochs: float = 2.5) -> RunConfig:
    """MAE of a ViT-tiny on CIFAR-10 at 32 px, patch 4: sized for 2 cores, within 20 minutes.

    Command: ``quadriga train mae_cifar10 data.root=CIFAR10_FOLDER``; the folder holds ``train``
    and ``test`` with one folder of images per class. Two ranks of one thread each, since at this
    size two threads of one rank mostly wait for each other.
    """
    return RunConfig(
        name="mae_cifar10",
        model=ViTConfig.tiny(image_px=32, patch_px=4).override({"pool": "mean"}),
        objective=MAEConfig(decoder_width=96, decoder_depth=2, decoder_heads=4),
        data=ImageFolderConfig(root=root),
        views=ImageViewsConfig(image_px=32, crop_scale=(0.4, 1.0), test_crop_fraction=1.0),
        optim=AdamWConfig(lr=1e-3, lr_batch=64, weight_decay=0.05, no_decay=NO_DECAY),
        schedule=WarmupCosineConfig(warmup_steps=100),
        train=TrainConfig(
            epochs=epochs, batch_size=64, ranks=2, precision="auto", dataset_size=50_000
        ),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=20),
        evaluation=PROTOCOLS.override({"train_samples": 10_000, "test_samples": 5_000}),
    )


def _imagenet(name: str, model: ViTConfig, root: Path, epochs: float) -> RunConfig:
    """Return the reference ImageNet recipe for a size: batch 4096, lr 1.5e-4 per 256 samples."""
    return RunConfig(
        name=name,
        model=model,
        objective=MAEConfig(),
        data=ImageFolderConfig(root=root),
        views=ImageViewsConfig(image_px=model.image_px, crop_scale=(0.2, 1.0)),
        optim=AdamWConfig(
            lr=2.4e-3, lr_batch=4096, betas=(0.9, 0.95), weight_decay=0.05, no_decay=NO_DECAY
        ),
        # The reference starts its runs of 800 and 1600 epochs lower than those of 400.
        schedule=WarmupCosineConfig(warmup_epochs=40, start_factor=1e-9 if epochs >= 800 else 1e-4),
        train=TrainConfig(epochs=epochs, batch_size=4096, dataset_size=1_281_167),
        loader=LoaderConfig(workers=8),
        log=LogConfig(every_steps=100),
        evaluation=PROTOCOLS,
    )


def mae_vit_small(root: Path = Path("data/imagenet"), epochs: float = 400) -> RunConfig:
    """MAE of a ViT-S/16 at 224 px with the reference ImageNet recipe.

    Command: ``quadriga train mae_vit_small data.root=IMAGENET --ranks 8``.
    """
    return _imagenet("mae_vit_small", ViTConfig.small(), root, epochs)


def mae_vit_base(root: Path = Path("data/imagenet"), epochs: float = 400) -> RunConfig:
    """MAE of a ViT-B/16 at 224 px with the reference ImageNet recipe (8 x 512, 400 epochs).

    Command: ``quadriga train mae_vit_base data.root=IMAGENET --ranks 8``.
    The reference reports 62.5 % linear probing after 400 epochs.
    """
    return _imagenet("mae_vit_base", ViTConfig.base(), root, epochs)


def mae_vit_large(root: Path = Path("data/imagenet"), epochs: float = 400) -> RunConfig:
    """MAE of a ViT-L/16 at 224 px with the reference ImageNet recipe.

    Command: ``quadriga train mae_vit_large data.root=IMAGENET --ranks 8``.
    The reference reports 70.7 % linear probing after 400 epochs.
    """
    return _imagenet("mae_vit_large", ViTConfig.large(), root, epochs)


def mae_vit_huge(root: Path = Path("data/imagenet"), epochs: float = 1600) -> RunConfig:
    """MAE of a ViT-H/14 at 224 px with the reference ImageNet recipe, 1600 epochs.

    Command: ``quadriga train mae_vit_huge data.root=IMAGENET --ranks 8``.
    The reference reports 86.9 % after fine-tuning.
    """
    return _imagenet("mae_vit_huge", ViTConfig.huge(), root, epochs)


LOW, HIGH = "low", "high"


def mae_digits_two_stage(low_epochs: float = 40, high_epochs: float = 10) -> Workflow:
    """MAE on the embedded digits, first at 16 px and then at 32 px: a minute or two on 2 cores.

    Command: ``quadriga run mae_digits_two_stage``. Expected: linear probe about 96 %, kNN about
    83 %, with 0.41 times the operations of all epochs at 32 px, which reach 97 % and 90 %.
    """
    whole = mae_digits(low_epochs + high_epochs)
    return _two_stage("mae_digits_two_stage", whole, 16, low_epochs, high_epochs, warmup=1)


def mae_vit_base_two_stage(
    root: Path = Path("data/imagenet"), low_epochs: float = 360, high_epochs: float = 40
) -> Workflow:
    """MAE of a ViT-B/16 on ImageNet, 360 epochs at 112 px and 40 at 224 px.

    Command: ``quadriga run mae_vit_base_two_stage data.root=IMAGENET --ranks-per-run 8``.
    No result is known: it has not been run to the end.
    """
    whole = mae_vit_base(root, low_epochs + high_epochs)
    return _two_stage("mae_vit_base_two_stage", whole, 112, low_epochs, high_epochs, warmup=5)


def _two_stage(
    name: str, whole: RunConfig, low_px: int, low_epochs: float, high_epochs: float, warmup: float
) -> Workflow:
    """Return a workflow of two runs, of which the first trains on images of `low_px` pixels."""
    small: dict[str, Any] = {"model.image_px": low_px, "views.image_px": low_px}
    if "image_px" in type(whole.data).model_fields:  # synthetic images have a size of their own
        small["data.image_px"] = low_px
    low = whole.override({"name": f"{name}.{LOW}", "train.epochs": low_epochs, **small})
    high = whole.override(
        {
            "name": f"{name}.{HIGH}",
            "train.epochs": high_epochs,
            "schedule.warmup_epochs": warmup,
            "warm_start.path": f"@{LOW}",
        }
    )
    return Workflow(
        name=name, nodes=(Node(LOW, low), Node(HIGH, high)), result=HIGH, reference=whole
    )
