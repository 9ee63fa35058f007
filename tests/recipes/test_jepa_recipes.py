"""The recipes of SimMIM, I-JEPA and LeJEPA say what their authors' configs say."""

from __future__ import annotations

import pytest

from quadriga.contracts import Progress
from quadriga.engine.run_plan import make_plan
from quadriga.recipes.find import find_recipe

AUTHORS = {
    # Batch, epochs, learning rate at the start, at its peak and at the end, epochs of warm-up.
    "simmim_vit_base": (2048, 800, 2e-6, 4e-4, 4e-5, 10),
    "ijepa_vit_huge": (2048, 300, 2e-4, 1e-3, 1e-6, 40),
    "lejepa_vit_large": (512, 100, 0.0, 5e-4, 5e-7, 10),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_the_imagenet_recipe_is_the_authors(name: str) -> None:
    batch, epochs, first, peak, final, warmup = AUTHORS[name]
    config = find_recipe(name)()
    assert (config.train.batch_size, config.train.epochs) == (batch, epochs)
    plan = make_plan(config, 1_281_167, 8)
    rates = []
    for epoch in (0, warmup, epochs):
        step = round(epoch * plan.dataset_size / batch)
        progress = Progress(step, plan.total_steps, batch, plan.dataset_size)
        rates.append(plan.lr * config.schedule.factor(progress))
    assert rates == pytest.approx([first, peak, final], rel=1e-3, abs=1e-6 if first == 0 else 0)


@pytest.mark.parametrize("method", ["simmim", "ijepa", "lejepa"])
def test_recipes_are_found_and_kept_in_json(method: str) -> None:
    names = [n for n in (*AUTHORS, f"{method}_cifar10") if n.startswith(method)]
    for name in names:
        config = find_recipe(name)()
        assert (config.name, config.objective.kind()) == (name, method)
        assert type(config).from_dict(config.as_dict()) == config


def test_the_rate_of_simmim_falls_once() -> None:
    config = find_recipe("simmim_vit_base")()
    plan = make_plan(config, 1_281_167, 8)
    factors = []
    for epoch in (100, 699, 701, 799):
        step = round(epoch * plan.dataset_size / 2048)
        progress = Progress(step, plan.total_steps, 2048, plan.dataset_size)
        factors.append(config.schedule.factor(progress))
    assert factors == [1.0, 1.0, pytest.approx(0.1), pytest.approx(0.1)]
