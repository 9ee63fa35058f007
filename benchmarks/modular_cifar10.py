"""Modular against end-to-end training on a part of CIFAR-10: 16 blocks in four modules.

    python benchmarks/modular_cifar10.py --data CIFAR10_FOLDER [--seeds 1] [--slots 2]
        [--work-dir runs/modular_cifar10] [--picture FILE.png] [--goal] [--table]

A fifth of the training images of each class (10,000) and all 10,000 test images; a vision
transformer of width 64 with patches of 4 px. Sized for about 20 minutes per arm on one core: end
to end 16 epochs; or a meta model of four blocks (10), four modules (5 each) and fine-tuning (5);
or the target grown out of the meta model (12). The columns are explained in modular_shapes.py.

Two runs at a time. It can be stopped anywhere and started again: what is finished is not redone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modular_arms import Arms, Budget, seed_arms
from modular_compare import arguments, compare
from modular_goal import add_goal_arms
from quadriga.data.image_folder import ImageFolderConfig
from quadriga.data.part import PartConfig
from quadriga.data.shifted_views import ShiftedViewsConfig
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
from quadriga.optim.adamw import AdamWConfig
from quadriga.optim.schedules.warmup_cosine import WarmupCosineConfig

DEPTHS = (4, 4, 4, 4)
BUDGET = Budget(end_to_end=16, meta=10, module=5, finetune=5, grown=12, rates=(5e-4, 1e-3, 2e-3))


def base(root: Path) -> RunConfig:
    """Return the target model's end-to-end run: 16 blocks of width 64, 0.8 M parameters."""
    return RunConfig(
        name="end_to_end",
        model=ViTConfig(
            image_px=32,
            patch_px=4,
            width=64,
            depth=sum(DEPTHS),
            heads=4,
            positions="learned",
            drop_path=0.1,
        ),
        objective=SupervisedConfig(classes=10, initialise="xavier_uniform"),
        data=PartConfig(of=ImageFolderConfig(root=root), fraction=0.2),
        views=ShiftedViewsConfig(image_px=32, shift_px=4),
        optim=AdamWConfig(lr=1e-3, lr_batch=64, weight_decay=0.05, clip_norm=1.0),
        schedule=WarmupCosineConfig(warmup_epochs=1),
        train=TrainConfig(epochs=16, batch_size=64),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=50, loggers=()),
        checkpoint=CheckpointConfig(every_epochs=2, keep=1),
        evaluation=EvaluationConfig(protocols=(HeldOutConfig(batch_size=100),), workers=0),
    )


def main() -> None:
    """Read the command line, make what is missing, print the table."""
    parser = arguments(__doc__ or "", "runs/modular_cifar10")
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()

    def arms(seed: int, rates: Sequence[float]) -> Arms:
        whole = base(given.data.resolve())
        found = seed_arms(whole, DEPTHS, BUDGET, seed, rates, all_arms=seed == 0)
        if given.goal:
            add_goal_arms(found, whole, DEPTHS, BUDGET, seed)
        return found

    compare("modular_cifar10", arms, BUDGET.rates, given)


if __name__ == "__main__":
    main()
