"""Modular against end-to-end training on a part of CIFAR-10: 16 blocks in four modules.

    python benchmarks/modular_cifar10.py --data CIFAR10_FOLDER [--seeds 1] [--slots 2]
        [--work-dir runs/modular_cifar10] [--picture FILE.png] [--goal] [--table]

A fifth of the training images of each class (10,000) and all 10,000 test images; a vision
transformer of width 64 with patches of 4 px. Sized for 15 to 20 minutes per arm on one core: end
to end 10 epochs; or a meta model of four blocks (5), four modules (3 each) and fine-tuning (3.5);
or the target grown out of the meta model (8). The columns are explained in modular_shapes.py.

Two runs at a time. It can be stopped anywhere and started again: what is finished is not redone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modular_arms import Arms, Budget, seed_arms
from modular_compare import arguments, compare
from modular_goal import add_goal_arms
from quadriga.engine.run_config import RunConfig
from quadriga.recipes.deit import deit_cifar10

DEPTHS = (4, 4, 4, 4)
BUDGET = Budget(end_to_end=10, meta=5, module=3, finetune=3.5, grown=8, rates=(5e-4, 1e-3, 2e-3))


def base(root: Path) -> RunConfig:
    """Return the target model's end-to-end run: 16 blocks of width 64, 0.8 M parameters."""
    quiet = {"objective.classes": 10, "log.loggers": [], "checkpoint.keep": 1}
    return deit_cifar10(root).override(quiet)


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
