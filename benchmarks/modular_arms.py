"""The arms of the comparison between modular and end-to-end training: one graph of runs.

Every arm gets the same data, model, batch and kind of schedule. What an arm costs is counted from
the runs it needs: the meta model counts for each arm that starts from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quadriga.engine.run_config import RunConfig
from quadriga.engine.workflow import REFERENCE, Node
from quadriga.modular.growth import GrowthConfig
from quadriga.recipes.deep_incubation import Incubation, incubate


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


GENTLE = "function-preserving, gentle fine-tuning"
"""The incubation that starts from the meta model and is fine-tuned at a third of the rate."""


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
    begin = f"s{seed}_"
    arms = Arms()
    meta = f"{begin}meta"
    small = {"model.depth": len(depths), "model.drop_path": 0.0, "train.epochs": budget.meta}
    arms.add("meta model alone", [node(meta, base, small)])
    arms.add(
        "end to end, residual branches at zero",
        [node(f"{begin}zero", base, {"objective.zero_residual": True})],
    )
    module = {"train.epochs": budget.module}
    published = {"train.epochs": budget.finetune, "schedule.warmup_epochs": 0}
    gentle = {
        "train.epochs": budget.finetune,
        "optim.lr": budget.rate / 3,
        "schedule.warmup_epochs": 1,
        "evaluation.at_start": True,
    }
    preserving = incubate(
        base,
        Incubation(depths, "function_preserving", 1, None, module, gentle),
        f"{begin}fp_",
        meta,
    )
    arms.add(GENTLE, preserving, [meta])
    for rate in rates:
        arms.add(
            f"end to end, lr {rate:g}",
            [node(f"{begin}e2e_{rate:g}".replace(".", "p"), base, {"optim.lr": rate})],
        )
    random = incubate(
        base,
        Incubation(depths, "random", 1, None, module, {**published, "evaluation.at_start": True}),
        f"{begin}published_",
        meta,
    )
    arms.add("published incubation", random, [meta])
    if all_arms:
        for how, name in (("function_preserving", "growth"), ("stacking", "stacking")):
            grown = GrowthConfig(depths=depths, meta=REFERENCE + meta, how=how)  # type: ignore[arg-type]
            own = {"modular": grown.as_dict(), "train.epochs": budget.grown}
            arms.add(name, [node(f"{begin}{name}", base, own)], [meta])
        again = preserving[-1].config.override(
            {**published, "optim.lr": budget.rate, "name": f"{begin}fp_published"}
        )
        arms.nodes.append(Node(f"{begin}fp_published", again))
        names = [each.name for each in preserving[:-1]]
        arms.arms.append(
            Arm(
                "function-preserving, published fine-tuning",
                f"{begin}fp_published",
                (meta, *names, f"{begin}fp_published"),
            )
        )
    return arms


def node(name: str, base: RunConfig, own: Mapping[str, Any]) -> Node:
    """Return a run that differs from the end-to-end one in some values."""
    return Node(name, base.override({"name": name, **own}))
