"""Modular against end-to-end training on the procedural shapes: 32 blocks in four modules.

    python benchmarks/modular_shapes.py [--seeds 3] [--work-dir runs/modular_shapes] [--slots 2]
        [--picture FILE.png] [--goal] [--table]

End to end 60 epochs; or a meta model of four blocks (60), four modules (20 each) and fine-tuning
(20); or the target grown out of the meta model (44). One seed tries three learning rates end to
end; further seeds take the best, and only the arms that need a spread.

*accuracy* is on 2,000 test pictures, mean and standard deviation over seeds; *assembled* the same
before fine-tuning. *x* is FLOPs, *path x* the FLOPs of the longest chain of runs with a device for
each, *memory x* the planned memory of the largest run, *module x* of the largest module's, each
over that of end-to-end training with residual branches at zero. *time* and *path* are the
wall times of the runs, as busy as the machine was.

Two runs at a time. It can be stopped anywhere and started again: what is finished is not redone.
"""

from __future__ import annotations

from collections.abc import Sequence

from modular_arms import Arms, Budget, seed_arms
from modular_compare import arguments, compare
from modular_goal import add_goal_arms
from quadriga.data.images.clutter import ClutterConfig
from quadriga.data.views.shifts import ShiftedViewsConfig
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


def main() -> None:
    """Read the command line, make what is missing, print the table."""
    given = arguments(__doc__ or "", "runs/modular_shapes").parse_args()

    def arms(seed: int, rates: Sequence[float]) -> Arms:
        found = seed_arms(base(), DEPTHS, BUDGET, seed, rates, all_arms=seed == 0)
        if given.goal:
            add_goal_arms(found, base(), DEPTHS, BUDGET, seed)
        return found

    compare("modular_shapes", arms, BUDGET.rates, given)


if __name__ == "__main__":
    main()
