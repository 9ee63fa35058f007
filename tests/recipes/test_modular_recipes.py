"""The recipes of modular training: sizes, phases, and what they cost against end to end."""

from __future__ import annotations

import pytest

from quadriga.engine.build import build_on_meta
from quadriga.recipes.find import find_recipe, find_workflow, list_recipes, list_workflows
from quadriga.workflow.graph import check_graph, needs_of
from quadriga.workflow.preview import Planner

MODULAR = [name for name in list_workflows() if name.startswith("deep_incubation")]


@pytest.mark.parametrize("name", MODULAR)
def test_an_incubation_is_meta_modules_and_the_whole(name):
    workflow = find_workflow(name)()
    check_graph(workflow)
    modules = [node.name for node in workflow.nodes if node.name.startswith("module_")]
    needs = needs_of(workflow)
    assert len(modules) == 4
    assert needs["meta"] == ()
    assert all(needs[module] == ("meta",) for module in modules)
    assert needs["finetune"] == tuple(modules)
    assert workflow.result == "finetune"
    together = find_workflow(name)(modules_per_run=3)
    assert [node.name for node in together.nodes][1:3] == ["module_0_1_2", "module_3"]


PUBLISHED = {
    # Parameters of target, meta model and modules 0, 1 and 3, in millions; FLOPs over end to end;
    # drop path of the fine-tuning.
    "deep_incubation_vit_base": (86.57, 29.86, (22.01, 21.26, 22.03), 1.17, 0.1),
    "deep_incubation_vit_large": (304.33, 52.40, (76.57, 75.58, 76.60), 0.92, 0.5),
    "deep_incubation_vit_huge": (631.92, 81.06, (158.47, 157.39, 158.67), 0.85, 0.6),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n.endswith("base") else [pytest.mark.long]) for n in PUBLISHED],
)
def test_the_published_sizes_and_costs(name):
    target, meta, modules, ratio, drop_path = PUBLISHED[name]
    workflow = find_workflow(name)()
    configs = {
        node.name: node.config.override({"objective.classes": 1000}) for node in workflow.nodes
    }
    planned = Planner(lambda config: None, rehearses=True).plan_all(
        {**configs, "reference": workflow.reference}
    )

    def millions(node):
        return planned[node].trainable_parameters / 1e6

    assert millions("finetune") == pytest.approx(target, abs=0.01)
    assert millions("meta") == pytest.approx(meta, abs=0.01)
    found = [millions(f"module_{index}") for index in (0, 1, 3)]
    assert found == pytest.approx(list(modules), abs=0.011)
    cost = sum(planned[node].flops for node in configs) / planned["reference"].flops
    assert cost == pytest.approx(ratio, abs=0.012)
    run = configs["finetune"]
    assert (run.model.drop_path, run.optim.clip_norm, run.schedule.warmup_epochs) == (
        drop_path,
        1,
        0,
    )
    assert (configs["meta"].train.epochs, configs["module_2"].train.epochs) == (300, 100)
    assert configs["meta"].model.drop_path == 0
    assert configs["module_2"].model.drop_path == 0.1
    assert {config.train.batch_size for config in configs.values()} == {2048}
    assert configs["meta"].optim.lr * 2048 / configs["meta"].optim.lr_batch == 2e-3


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.startswith("deit")])
def test_the_baselines_are_built(name):
    config = find_recipe(name)().override({"objective.classes": 1000})
    objective = build_on_meta(config)
    assert objective.metric_names == ("accuracy", "accuracy_5")
