"""Further arms, which all end within 0.6 of end-to-end training's critical path.

What the published budgets leave open: how long to train the meta model, the modules and the whole;
and whether the same critical path, spent end to end, would have come as far.
"""

from __future__ import annotations

from modular_arms import Arms, Budget, node
from quadriga.engine.run_config import RunConfig
from quadriga.modular.growth import GrowthConfig
from quadriga.modular.hybrid import HybridConfig
from quadriga.recipes.deep_incubation import Incubation, incubate
from quadriga.workflow.graph import REFERENCE

SHARE = 0.58
"""What an arm's critical path is sized for, over that of the end-to-end budget."""


def add_goal_arms(
    arms: Arms, base: RunConfig, depths: tuple[int, ...], budget: Budget, seed: int
) -> None:
    """Add the arms of one seed.

    Args:
        arms: Where they are added.
        base: The target's end-to-end run.
        depths: Blocks of each module.
        budget: Epochs and learning rates of the first comparison.
        seed: Of all runs.
    """
    base = base.override({"seed": seed, "train.epochs": budget.end_to_end, "optim.lr": budget.rate})
    begin, whole = f"s{seed}_", budget.end_to_end
    short = node(
        f"{begin}zero_short",
        base,
        {"objective.zero_residual": True, "train.epochs": round(SHARE * whole)},
    )
    arms.add("end to end, branches at zero, same path", [short])
    meta = f"{begin}meta_short"
    small = {"model.depth": len(depths), "model.drop_path": 0.0, "train.epochs": whole / 4}
    first = node(meta, base, small)
    module, finetune = whole / 6, whole / 2
    incubation = Incubation(
        depths,
        "function_preserving",
        module={"train.epochs": module},
        finetune={"train.epochs": finetune, "evaluation.at_start": True},
    )
    nodes = incubate(base, incubation, f"{begin}short_", meta)
    arms.add("short meta and modules, long fine-tuning", [first, *nodes])
    grown = GrowthConfig(depths=depths, meta=REFERENCE + meta)
    own = {"modular": grown.as_dict(), "train.epochs": round((SHARE - 1 / 32) * whole)}
    arms.add("growth from the short meta model", [node(f"{begin}short_growth", base, own)], [meta])
    _add_second_round(arms, base, depths, nodes[-1].name, whole, begin)
    _add_one_decay(arms, base, depths, whole, begin)


def _add_second_round(
    arms: Arms,
    base: RunConfig,
    depths: tuple[int, ...],
    assembled: str,
    whole: float,
    begin: str,
) -> None:
    """Add modules that train again, each inside the fine-tuned whole, and are put together anew."""
    needed = next(arm.nodes for arm in arms.arms if arm.result == assembled)
    names, nodes = [], []
    for index in range(len(depths)):
        hybrid = HybridConfig(
            depths=depths, live=(index,), meta=REFERENCE + assembled, meta_depths=depths
        )
        names.append(f"{begin}again_module_{index}")
        own = {
            "modular": hybrid.as_dict(),
            "train.epochs": whole / 12,
            "optim.lr": base.optim.lr / 3,
            "schedule.warmup_epochs": 1,
        }
        nodes.append(node(names[-1], base, own))
    nodes.append(
        node(
            f"{begin}again",
            base,
            {
                "modular": {
                    "kind": "assembly",
                    "depths": depths,
                    "modules": [REFERENCE + name for name in names],
                },
                "train.epochs": whole / 20,
                "optim.lr": base.optim.lr / 10,
                "schedule.warmup_epochs": 1,
                "evaluation.at_start": True,
            },
        )
    )
    arms.add("a second round of modules after it", nodes, needed)


def _add_one_decay(
    arms: Arms, base: RunConfig, depths: tuple[int, ...], whole: float, begin: str
) -> None:
    """Add an incubation whose learning rate falls once: while the whole is fine-tuned.

    The meta model and the modules stay at the peak after their warm-up.
    """
    level = {"schedule.final_factor": 1.0}
    meta = f"{begin}level_meta"
    small = {"model.depth": len(depths), "model.drop_path": 0.0, "train.epochs": whole / 2}
    incubation = Incubation(
        depths,
        "function_preserving",
        module={"train.epochs": whole / 6, "schedule.warmup_epochs": 1, **level},
        finetune={
            "train.epochs": round(whole * 0.47),
            "schedule.warmup_epochs": 1,
            "evaluation.at_start": True,
        },
    )
    nodes = [
        node(meta, base, small | level),
        *incubate(base, incubation, f"{begin}level_", meta),
    ]
    arms.add("one decay over all phases", nodes)
