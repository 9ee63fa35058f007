"""The preview of a workflow: its runs are checked and their costs counted before any starts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import final

import torch

from quadriga.contracts import Dataset
from quadriga.engine.build import build_on_meta
from quadriga.engine.classes import leaves_it_to_data
from quadriga.engine.initial_weights import check_initial_weights
from quadriga.engine.meters.cost import Cost, measure, memory_estimate
from quadriga.engine.preflight import ASSUMED, check_start
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan, make_plan
from quadriga.engine.step.sharding import shard_ranks
from quadriga.errors import MissingData, UserError
from quadriga.workflow.directory import Planned
from quadriga.workflow.graph import REFERENCE

Check = Callable[[RunConfig], None]


@final
class Planner:
    """Checks configs that share their data: each data set is opened once."""

    def __init__(self, check: Check, rehearses: bool = False) -> None:
        """Make a planner.

        Args:
            check: A further check of a config, which raises `UserError`.
            rehearses: Whether to use the recipe's `train.dataset_size` for missing data.
        """
        self._check, self._rehearses = check, rehearses
        self._opened: dict[str, Dataset] = {}
        self._costs: dict[str, Cost | None] = {}

    def check(self, config: RunConfig) -> tuple[RunConfig, RunPlan]:
        """Check a run as ``quadriga train`` does, as far as that needs no other run.

        Args:
            config: The run's config; references to other nodes are not followed.

        Returns:
            The config to measure, and its plan.

        Raises:
            UserError: The run cannot start.
        """
        self._check(config)
        check_initial_weights(config, later=REFERENCE)
        if self._rehearses and leaves_it_to_data(config):
            config = config.override({"objective.classes": ASSUMED})
        return config, self._numbers(config)

    def measure(self, config: RunConfig, plan: RunPlan) -> Planned:
        """Count a run's parameters, FLOPs and memory on the meta device.

        Args:
            config: The run's config.
            plan: The run's plan.
        """
        ranks = config.train.ranks
        micro = math.ceil(plan.batch_size / (plan.world_size * plan.accumulate))
        own = list(build_on_meta(config).parameters())
        cost = self._cost(config, micro)
        return Planned(
            total_steps=plan.total_steps,
            batch_size=plan.batch_size,
            ranks=ranks,
            parameters=sum(p.numel() for p in own),
            trainable_parameters=sum(p.numel() for p in own if p.requires_grad),
            flops_per_sample=None if cost is None else cost.model_flops / cost.samples,
            memory_gib=None if cost is None else _memory_gib(config, cost),
        )

    def _numbers(self, config: RunConfig) -> RunPlan:
        """Return a run's plan; in a rehearsal without data, from `train.dataset_size`."""
        key, ranks, stated = config.data.as_json(), config.train.ranks, config.train.dataset_size
        if self._rehearses and stated is not None and key not in self._opened:
            try:
                self._opened[key] = config.data.build("train")
            except MissingData:
                config.executor.check(config, build_on_meta(config), ranks)
                return make_plan(config, stated, config.executor.share(0, ranks).of)
        self._opened[key], plan = check_start(config, ranks, self._opened.get(key))
        return plan

    def _cost(self, config: RunConfig, micro: int) -> Cost | None:
        """Return the cost of a rank's micro-batch; None if the meta device cannot run the model.

        The result is cached: nodes that differ only in data, seed and length cost the same.
        """
        tree = config.as_dict()
        parts = [tree[name] for name in ("model", "objective", "modular", "views")]
        key = json.dumps([*parts, micro])
        if key not in self._costs:
            example = config.views.build("train").example(micro, torch.device("meta"))
            try:
                self._costs[key] = measure(build_on_meta(config), example)
            except (NotImplementedError, RuntimeError):
                self._costs[key] = None
        return self._costs[key]

    def plan_all(self, configs: Mapping[str, RunConfig]) -> dict[str, Planned]:
        """Plan several runs.

        Raises:
            UserError: Some runs cannot start; the message lists all of them with their reasons.
        """
        checked: dict[str, tuple[RunConfig, RunPlan]] = {}
        problems: dict[str, list[str]] = {}
        for name, config in configs.items():
            try:
                checked[name] = self.check(config)
                _check_parts(config, configs)
            except UserError as error:
                problems.setdefault(str(error), []).append(name)
        if problems:
            raise UserError(
                "; ".join(f"{', '.join(names)}: {text}" for text, names in problems.items())
            )
        return {name: self.measure(*both) for name, both in checked.items()}


def _check_parts(config: RunConfig, others: Mapping[str, RunConfig]) -> None:
    """Check that a modular run's sources will exist and fit.

    Raises:
        UserError: A source will be missing or not fit.
    """
    if config.modular is None:
        return
    runs = [
        others[path.removeprefix(REFERENCE)].as_dict() if path.startswith(REFERENCE) else None
        for _, path in config.modular.sources()
    ]
    config.modular.check_sources(config.objective, config.model, runs)


def _memory_gib(config: RunConfig, cost: Cost) -> float | None:
    train = config.train
    if config.executor.is_cut or train.recompute != "none":
        return None  # quadriga plan and --dry-run compute these cases
    shards = shard_ranks(train, train.ranks, train.ranks)
    ema = config.ema.decay is not None
    return memory_estimate(cost, shards=shards, has_ema=ema).total / 2**30
