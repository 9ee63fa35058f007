"""Cutting, hybrids and growth: equal to the models that they are made of."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from incubations import DEPTHS, batch, built, growth_run, hybrid_run, meta_run, whole

from quadriga.contracts import LossOutput, WeightSource
from quadriga.data.views.crops import ImageViewsConfig
from quadriga.engine.build import build_on_meta
from quadriga.engine.meters.cost import measure
from quadriga.models.parts.transformer import DropPath
from quadriga.models.vit import ViTConfig
from quadriga.optim.parts.groups import partial_optimizer


def source_of(config, objective, path="runs/meta"):
    tensors = {name: t.clone() for name, t in objective.state_dict().items()}
    return WeightSource(path=path, tensors=tensors, config=config.as_dict())


def loss_of(objective):
    return objective(batch())


@pytest.fixture
def meta():
    config = meta_run(seed=5)
    return source_of(config, built(config))


def in_turn(stages):
    hidden = None
    for stage in stages:
        hidden = stage(hidden, batch())
    assert isinstance(hidden, LossOutput)
    return hidden


@pytest.mark.parametrize("depths", [(4,), (1, 3), (3, 1), (2, 2), (1, 1, 2), (1, 1, 1, 1), (0, 4)])
def test_stages_in_turn_are_the_whole_model(depths):
    objective = built(whole()).train()
    expected = loss_of(objective)
    expected.only.total.backward()
    gradients = {name: p.grad.clone() for name, p in objective.named_parameters()}
    objective.zero_grad()
    stages = objective.stages(depths)
    found = in_turn(stages)
    found.only.total.backward()
    assert torch.equal(found.only.total, expected.only.total)
    assert found.metrics == expected.metrics
    own = dict(itertools.chain.from_iterable(stage.named_parameters() for stage in stages))
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(own[name].grad, gradient), name


def test_a_stage_starts_with_the_values_of_the_whole():
    objective = built(whole(objective__zero_residual=True))
    shapes = build_on_meta(whole(objective__zero_residual=True)).stages((1, 3))
    for stage in shapes:
        alone = stage.to_empty(device="cpu")
        alone.initialise(0)
        for name, tensor in alone.state_dict().items():
            assert torch.equal(tensor, objective.state_dict()[name]), name
    assert not objective.encoder.blocks[0].mlp.output.weight.any()


@pytest.mark.parametrize("live", [(0,), (1,), (0, 1)])
def test_a_function_preserving_hybrid_is_the_meta_model_bit_for_bit(meta, live):
    expected = loss_of(built(meta_run(seed=5)).eval())
    hybrid = built(hybrid_run("runs/meta", *live), [meta]).eval()
    found = loss_of(hybrid)
    if len(live) == 1:
        assert torch.equal(found.only.total, expected.only.total)
        assert found.metrics == expected.metrics
    else:
        assert torch.equal(found.only.total, expected.only.total + expected.only.total)
        assert found.metrics["module_1.accuracy"] == expected.metrics["accuracy"]
        assert set(found.metrics) == set(hybrid.metric_names)


def test_a_random_hybrid_is_not_and_has_the_targets_values(meta):
    target = built(whole())
    hybrid = built(hybrid_run("runs/meta", 1, initialise="random"), [meta])
    assert not torch.equal(
        loss_of(hybrid.eval()).only.total, loss_of(built(meta_run(seed=5)).eval()).only.total
    )
    for name, tensor in hybrid.live["1"].state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_an_inheriting_hybrid_has_the_meta_models_classifier_and_its_own_blocks(meta):
    target = built(whole()).state_dict()
    module = built(hybrid_run("runs/meta", 1, initialise="inherit"), [meta]).live["1"].state_dict()
    for name, tensor in module.items():
        origin = target if ".blocks." in name else meta.tensors
        assert torch.equal(tensor, origin[name]), name


def test_only_the_live_module_takes_gradients_and_only_it_is_random(meta):
    hybrid = built(hybrid_run("runs/meta", 1, initialise="random"), [meta]).train()
    loss_of(hybrid).only.total.backward()
    for name, parameter in hybrid.named_parameters():
        assert (parameter.grad is not None) == name.startswith("live.1."), name
    assert not any(isinstance(module, DropPath) for module in hybrid.meta.modules())
    rates = [float(m.rate) for m in hybrid.live.modules() if isinstance(m, DropPath)]
    target = [
        float(m.rate)
        for m in built(whole()).encoder.blocks[2:].modules()
        if isinstance(m, DropPath)
    ]
    assert rates == target
    assert rates[0] > 0


def test_the_prefix_keeps_nothing_and_the_suffix_passes_gradients(meta):
    first = built(hybrid_run("runs/meta", 0), [meta]).train()
    assert not first.meta["0"](None, batch()).requires_grad
    loss_of(first).only.total.backward()
    assert all(p.grad is None for p in first.meta.parameters())
    assert all(p.grad is not None for p in first.live.parameters())


@pytest.mark.parametrize("how", ["function_preserving", "stacking"])
def test_growth(meta, how):
    grown = built(growth_run("runs/meta", how), [meta]).eval()
    small = built(meta_run(seed=5)).eval()
    if how == "function_preserving":
        assert torch.equal(loss_of(grown).only.total, loss_of(small).only.total)
    blocks, own = grown.encoder.blocks, small.encoder.blocks
    for number, block in enumerate(blocks):
        origin = own[number // 2].state_dict()
        same = all(torch.equal(t, origin[name]) for name, t in block.state_dict().items())
        assert same == (how == "stacking" or number % 2 == 0)
    assert torch.equal(grown.head.weight, small.head.weight)
    assert grown.state_dict().keys() == built(whole()).state_dict().keys()


def test_imitation_is_zero_where_the_module_is_the_meta_stage(meta):
    hybrid = built(hybrid_run("runs/meta", 0, imitation=0.7), [meta]).eval()
    plain = loss_of(built(hybrid_run("runs/meta", 0), [meta]).eval())
    found = loss_of(hybrid)
    assert torch.equal(found.only.total, plain.only.total)
    assert found.metrics["imitation"][0] == 0
    with torch.no_grad():
        for parameter in hybrid.live.parameters():
            parameter += 0.01
    again, changed = built(hybrid_run("runs/meta", 0), [meta]).eval(), loss_of(hybrid)
    again.live.load_state_dict(hybrid.live.state_dict())
    with torch.no_grad():
        own, other = hybrid.live["0"](None, batch()), hybrid.meta["0"](None, batch())
    expected = loss_of(again).only.total + 0.7 * (own - other).square().mean() * 6
    torch.testing.assert_close(changed.only.total, expected)


@settings(max_examples=6, deadline=None)
@given(
    depths=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    data=st.data(),
)
def test_the_cost_of_a_hybrid_is_that_of_the_model_of_costs(depths, data):
    """Prefix 1, module 3, suffix 2 forward passes of a block; attention has no weights."""
    live = data.draw(st.integers(0, len(depths) - 1))
    base = {"model__depth": sum(depths), "views": ImageViewsConfig(image_px=16).as_dict()}

    def flops(meta_depths, cut, index=live):
        config = hybrid_run(
            "m",
            index,
            depths=tuple(cut),
            meta_depths=tuple(meta_depths),
            **{**base, "model__depth": sum(cut)},
        )
        example = config.views.build("train").example(1, torch.device("meta"))
        return measure(build_on_meta(config), example).model_flops

    ones = [1] * len(depths)
    plain = flops(ones, depths)
    model = whole().model
    assert isinstance(model, ViTConfig)
    tokens, width = model.patches + 1, model.width
    linear, attention = 2 * tokens * 12 * width**2, 4 * tokens**2 * width
    for at in range(len(depths)):
        more = [2 if i == at else 1 for i in range(len(depths))]
        added = flops(more, depths) - plain
        if at < live:
            assert added == linear + attention
        elif at > live:
            assert added == 2 * linear + 3 * attention
        else:
            assert added == 0
            deeper = [d + (i == at) for i, d in enumerate(depths)]
            assert flops(ones, deeper) - plain == 3 * (linear + attention)


def test_rules_of_the_optimizer_are_those_of_the_whole(meta):
    config = hybrid_run("runs/meta", 1)
    hybrid, target = built(config, [meta]), built(whole())

    def rules(objective):

        own = {
            objective.name_in_whole(n): p
            for n, p in objective.named_parameters()
            if p.requires_grad
        }
        optimizer = partial_optimizer(config.optim, objective.whole_parameters() or own, own)
        names = {id(p): name for name, p in own.items()}
        return {
            names[id(p)]: (group["weight_decay"], group["lr_scale"])
            for group in optimizer.param_groups
            for p in group["params"]
        }

    expected = rules(target)
    found = rules(hybrid)
    assert found == {name: expected[name] for name in found}
    assert len(found) == 2 * 12 + 4
    assert sum(DEPTHS) == 4
