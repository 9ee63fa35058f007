"""The arms of the comparison between modular and end-to-end training: one graph of runs.

Every arm gets the same data, model, batch and kind of schedule. What an arm costs is counted from
the runs it needs: the meta model counts for each arm that starts from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quadriga.engine.run_config import RunConfig
from quadriga.modular.growth import GrowthConfig
from quadriga.modular.parts.start import Start
from quadriga.recipes.deep_incubation import Incubation, incubate
from quadriga.workflow.graph import REFERENCE, Node


@dataclass(frozen=True)
class Budget:
    """Epochs of each phase, and the learning rates that are tried."""

    end_to_end: float
    meta: float
    module: float
    finetune: float
    grown: float
    """Epochs of the whole target after the meta model, where nothing is trained apart: as many as
    cost what the modules and the fine-tuning cost together."""
    rates: tuple[float, ...]
    """Learning rates of the end-to-end arm; the middle one is everybody else's."""

    @property
    def rate(self) -> float:
        """The learning rate of all other arms."""
        return self.rates[len(self.rates) // 2]


@dataclass(frozen=True)
class Arm:
    """One way to a trained target model."""

    name: str
    """What the table calls it."""
    result: str
    """The node whose accuracy counts."""
    nodes: tuple[str, ...]
    """All nodes that it needs."""


@dataclass
class Arms:
    """The arms of one seed and their runs."""

    nodes: list[Node] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)

    def add(self, name: str, nodes: Sequence[Node], also: Sequence[str] = ()) -> None:
        """Add an arm whose result is its last node.

        Args:
            name: What the table calls it.
            nodes: Its own runs.
            also: Runs of other arms that it needs too.
        """
        self.nodes += nodes
        own = tuple(node.name for node in nodes)
        self.arms.append(Arm(name, own[-1], (*also, *own)))


ZERO = "end to end, residual branches at zero"
"""The fair baseline, which the others' costs are set beside."""
GENTLE = "function-preserving, gentle fine-tuning"
"""The incubation that starts from the meta model and is fine-tuned at a third of the rate."""
PUBLISHED = "published incubation"
"""The one with modules that start at random and the published fine-tuning schedule."""


def seed_arms(
    base: RunConfig,
    depths: tuple[int, ...],
    budget: Budget,
    seed: int,
    rates: Sequence[float],
    all_arms: bool,
) -> Arms:
    """Return the arms of one seed.

    Args:
        base: The target's end-to-end run.
        depths: Blocks of each module.
        budget: Epochs and learning rates.
        seed: Of all its runs.
        rates: Learning rates that the end-to-end arm tries.
        all_arms: Whether those that one seed is enough for are there too.
    """
    base = base.override({"seed": seed, "train.epochs": budget.end_to_end, "optim.lr": budget.rate})
    begin, arms = f"s{seed}_", Arms()
    meta = f"{begin}meta"
    small = {"model.depth": len(depths), "model.drop_path": 0.0, "train.epochs": budget.meta}
    arms.add("meta model alone", [node(meta, base, small)])
    zero = node(f"{begin}zero", base, {"objective.zero_residual": True})
    arms.add(ZERO, [zero])
    _add_incubation(arms, "function_preserving", base, depths, budget, begin)
    if all_arms:
        _add_published_finetuning(arms, budget, begin)
    for rate in rates:
        name = f"{begin}e2e_{rate:g}".replace(".", "p")
        arms.add(f"end to end, lr {rate:g}", [node(name, base, {"optim.lr": rate})])
    _add_incubation(arms, "random", base, depths, budget, begin)
    if all_arms:
        for how in ("function_preserving", "stacking"):
            grown = GrowthConfig(depths=depths, meta=REFERENCE + meta, how=how)
            name = "stacking" if how == "stacking" else "growth"
            own = {"modular": grown.as_dict(), "train.epochs": budget.grown}
            arms.add(name, [node(f"{begin}{name}", base, own)], [meta])
    return arms


def _add_incubation(
    arms: Arms, start: Start, base: RunConfig, depths: tuple[int, ...], budget: Budget, begin: str
) -> None:
    """Add an incubation from the seed's meta model; the random one is fine-tuned as published."""
    finetune: dict[str, Any] = {"train.epochs": budget.finetune, "evaluation.at_start": True}
    if start == "random":
        finetune["schedule.warmup_epochs"] = 0
    else:
        finetune |= {"optim.lr": budget.rate / 3, "schedule.warmup_epochs": 1}
    incubation = Incubation(
        depths, start, module={"train.epochs": budget.module}, finetune=finetune
    )
    short, name = ("published_", PUBLISHED) if start == "random" else ("fp_", GENTLE)
    arms.add(name, incubate(base, incubation, f"{begin}{short}", f"{begin}meta"), [f"{begin}meta"])


def _add_published_finetuning(arms: Arms, budget: Budget, begin: str) -> None:
    """Add the function-preserving modules with the published method's fine-tuning."""
    gentle = next(arm for arm in arms.arms if arm.name == GENTLE)
    name = f"{begin}fp_published"
    config = next(each.config for each in arms.nodes if each.name == gentle.result)
    own = {"name": name, "optim.lr": budget.rate, "schedule.warmup_epochs": 0}
    arms.nodes.append(Node(name, config.override(own)))
    needed = tuple(each for each in gentle.nodes if each != gentle.result)
    arms.arms.append(Arm("function-preserving, published fine-tuning", name, (*needed, name)))


def node(name: str, base: RunConfig, own: Mapping[str, Any]) -> Node:
    """Return a run that differs from the end-to-end one in some values."""
    return Node(name, base.override({"name": name, **own}))
