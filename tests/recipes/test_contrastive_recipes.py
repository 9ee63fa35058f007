"""The recipes of SimCLR, MoCo, SwAV and DINO say what the papers say."""

from __future__ import annotations

import pytest

from quadriga.contracts import Progress
from quadriga.engine.build import build_on_meta
from quadriga.engine.dry_run import dry_run
from quadriga.engine.run_plan import make_plan
from quadriga.recipes.find import find_recipe

PAPERS = {
    # Batch, epochs, learning rate at its peak and at the end, epochs of warm-up, views.
    "simclr_resnet50": (4096, 100, 4.8, 0.0, 10, (2, 0)),
    "moco_v1_resnet50": (256, 200, 0.03, 0.0003, 0, (2, 0)),
    "moco_v2_resnet50": (256, 200, 0.03, 0.0, 0, (2, 0)),
    "moco_v3_resnet50": (4096, 100, 9.6, 0.0, 10, (2, 0)),
    "moco_v3_vit_small": (4096, 300, 2.4e-3, 0.0, 40, (2, 0)),
    "moco_v3_vit_base": (4096, 300, 2.4e-3, 0.0, 40, (2, 0)),
    "swav_resnet50": (4096, 800, 4.8, 0.0048, 10, (2, 6)),
    "dino_vit_small": (1024, 800, 2e-3, 1e-5, 10, (2, 10)),
}
SMALL = ("simclr", "moco_v2", "moco_v3", "swav", "dino")


@pytest.mark.parametrize("name", PAPERS)
def test_the_imagenet_recipe_is_the_papers(name: str) -> None:
    batch, epochs, peak, final, warmup, views = PAPERS[name]
    config = find_recipe(name)()
    assert config.name == name
    assert type(config).from_dict(config.as_dict()) == config
    assert (config.train.batch_size, config.train.epochs) == (batch, epochs)
    assert (config.views.crops, config.views.local_crops) == views
    assert config.schedule.warmup_epochs == warmup
    plan = make_plan(config, 1_281_167, 4)
    assert plan.lr == pytest.approx(peak)
    end = Progress(plan.total_steps, plan.total_steps, batch, plan.dataset_size)
    assert plan.lr * config.schedule.factor(end) == pytest.approx(final, abs=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_the_recipe_of_cifar10_sees_it_in_batches_of_256(name: str) -> None:
    config = find_recipe(f"{name}_cifar10")()
    assert config.name == f"{name}_cifar10"
    assert type(config).from_dict(config.as_dict()) == config
    assert config.train.batch_size == 256
    encoder = build_on_meta(config).encoder
    assert 650_000 < sum(p.numel() for p in encoder.parameters()) < 750_000


@pytest.mark.long
@pytest.mark.parametrize("name", [*PAPERS, *(f"{name}_cifar10" for name in SMALL)])
def test_the_recipe_starts(name: str) -> None:
    dry_run(find_recipe(name)(), 4)
