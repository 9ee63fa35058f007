"""The recipes of BYOL, SimSiam, Barlow Twins and VICReg say what the papers say."""

from __future__ import annotations

import pytest

from quadriga.contracts import Progress
from quadriga.engine.build import build_on_meta
from quadriga.engine.run_plan import make_plan
from quadriga.optim.parts.groups import groups_of
from quadriga.recipes.find import find_recipe

METHODS = ("byol", "simsiam", "barlow_twins", "vicreg")
PAPERS = {
    # Batch, epochs, learning rate at its peak and at the end, rate of vectors over that of weights.
    "byol": (4096, 1000, 3.2, 0.0, 1.0),
    "simsiam": (512, 100, 0.1, 0.0, 1.0),
    "barlow_twins": (2048, 1000, 1.6, 0.0016, 0.024),
    "vicreg": (2048, 1000, 1.6, 0.002, 1.0),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_imagenet_recipe_is_the_papers(method: str) -> None:
    batch, epochs, peak, final, of_vectors = PAPERS[method]
    config = find_recipe(f"{method}_resnet50")()
    assert (config.train.batch_size, config.train.epochs) == (batch, epochs)
    assert config.objective.statistics_group == batch
    plan = make_plan(config, 1_281_167, 8)
    assert plan.lr == pytest.approx(peak)
    end = Progress(plan.total_steps, plan.total_steps, batch, plan.dataset_size)
    assert plan.lr * config.schedule.factor(end) == pytest.approx(final, abs=1e-9)
    warmup = round(config.schedule.warmup_epochs)
    assert warmup == (0 if method == "simsiam" else 10)
    for start in (0, warmup // 2):
        step = round(start * plan.dataset_size / batch)
        rate = config.schedule.factor(Progress(step, plan.total_steps, batch, plan.dataset_size))
        assert rate == pytest.approx(start / warmup if warmup else 1.0, abs=1e-3)
    small = build_on_meta(config.override({"model.depth": 18, "model.stem_width": 2}))
    groups = groups_of(config.optim, list(small.named_parameters()))
    scales = {p.ndim > 1: group["lr_scale"] for group in groups for p in group["params"]}
    assert scales == {True: 1.0, False: of_vectors}
    assert all((p.ndim > 1) == (g["weight_decay"] > 0) for g in groups for p in g["params"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", ["resnet50", "cifar10"])
def test_only_the_predictor_of_simsiam_keeps_its_rate(method: str, size: str) -> None:
    config = find_recipe(f"{method}_{size}")()
    assert config.name == f"{method}_{size}"
    assert type(config).from_dict(config.as_dict()) == config
    small = build_on_meta(config.override({"model.depth": 18, "model.stem_width": 2}))
    groups = groups_of(config.optim, list(small.named_parameters()))
    constant = {id(p) for g in groups if g["constant_lr"] for p in g["params"]}
    predictor = small.predictor.parameters() if method == "simsiam" else ()
    assert constant == {id(parameter) for parameter in predictor}
