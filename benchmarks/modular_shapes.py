"""Modular against end-to-end training on the procedural shapes."""

from __future__ import annotations

from modular_arms import Budget, seed_arms
from quadriga.data.clutter import ClutterConfig
from quadriga.data.shifted_views import ShiftedViewsConfig
from quadriga.engine.run_config import (
    CheckpointConfig,
    EvaluationConfig,
    LoaderConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
)
from quadriga.engine.workflow import Workflow
from quadriga.evaluation.held_out import HeldOutConfig
from quadriga.methods.supervised import SupervisedConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.adamw import AdamWConfig
from quadriga.optim.schedules.warmup_cosine import WarmupCosineConfig

DEPTHS = (8, 8, 8, 8)
BUDGET = Budget(
    end_to_end=60, meta=60, module=20, finetune=20, grown=44, rates=(7e-4, 1.5e-3, 3e-3)
)


def base() -> RunConfig:
    """Return the target model's end-to-end run: 32 blocks of width 48, 0.9 M parameters."""
    return RunConfig(
        name="end_to_end",
        model=ViTConfig(
            image_px=24,
            patch_px=4,
            width=48,
            depth=sum(DEPTHS),
            heads=3,
            positions="learned",
            drop_path=0.1,
        ),
        objective=SupervisedConfig(classes=10, initialise="xavier_uniform"),
        data=ClutterConfig(),
        views=ShiftedViewsConfig(
            image_px=24, shift_px=2, fill="edge", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
        ),
        optim=AdamWConfig(lr=1.5e-3, lr_batch=100, weight_decay=0.05, clip_norm=1.0),
        schedule=WarmupCosineConfig(warmup_epochs=2),
        train=TrainConfig(epochs=60, batch_size=100),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=30, loggers=()),
        checkpoint=CheckpointConfig(every_epochs=10, keep=1),
        evaluation=EvaluationConfig(protocols=(HeldOutConfig(batch_size=100),), workers=0),
    )


def graph(seed: int = 0) -> Workflow:
    """Return the runs of one seed."""
    rates = BUDGET.rates if seed == 0 else (BUDGET.rate,)
    arms = seed_arms(base(), DEPTHS, BUDGET, seed, rates, all_arms=seed == 0)
    return Workflow("modular_shapes", tuple(arms.nodes), arms.arms[0].result)
