"""The learning rates that the parts of a model get in each step."""

from __future__ import annotations

import pytest

from parallel_worker import tiny_config
from quadriga.engine.build import build_on_meta
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step.update import Update


def test_parts_by_name_keep_the_peak_rate() -> None:
    """As the predictor of SimSiam does (Chen and He, 2021, section 4.2)."""
    rules = {"constant_lr": ("decoder.",), "lr_scales": {"decoder.head": 3.0}}
    config = tiny_config(["optim.kind=sgd"])
    config = config.override({f"optim.{name}": value for name, value in rules.items()})
    objective = build_on_meta(config)
    named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
    plan = make_plan(config, 100, 1)
    update = Update(named, config.optim.build(named), config, plan, frozenset())
    rates = {}
    for step in range(plan.total_steps):
        progress = update.progress(step)
        update.step(progress)
        peak, now = plan.lr, plan.lr * config.schedule.factor(progress)
        rates[step] = now
        found = {id(p): g["lr"] for g in update.optimizer.param_groups for p in g["params"]}
        for name, parameter in named:
            scale = 3 if "decoder.head" in name else 1
            expected = scale * (peak if name.startswith("decoder.") else now)
            assert found[id(parameter)] == pytest.approx(expected), (step, name)
    assert len(set(rates.values())) > 2
