"""Decay groups, and the fused step."""

from __future__ import annotations

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from errors import refuses
from quadriga.optim.adam import AdamWConfig
from quadriga.optim.parts.groups import decay_groups
from quadriga.randomness import generator

NAMES = st.text(alphabet="abn._", min_size=1, max_size=6)
SHAPES = st.sampled_from([(), (3,), (2, 3), (1, 2, 3)])


def module_of() -> nn.Module:
    """Two linear layers and a norm, with keyed values."""
    module = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(generator=generator("test adamw", name))
    return module


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        inputs = torch.empty(7, 6).normal_(generator=generator("test adamw inputs", step))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1) * group["lr_scale"]
        module(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@given(
    parameters=st.lists(
        st.tuples(NAMES, SHAPES, st.booleans()), unique_by=lambda p: p[0], max_size=8
    ),
    no_decay=st.lists(NAMES, max_size=3),
)
def test_every_trainable_parameter_is_in_the_group_of_its_rule(
    parameters: list[tuple[str, tuple[int, ...], bool]], no_decay: list[str]
) -> None:
    named = [(n, nn.Parameter(torch.zeros(s), requires_grad=g)) for n, s, g in parameters]
    groups = decay_groups(named, 0.3, no_decay)
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay_of == {
        id(p): 0.0 if p.ndim < 2 or any(part in name for part in no_decay) else 0.3
        for name, p in named
        if p.requires_grad
    }
    assert sum(len(group["params"]) for group in groups) == len(decay_of)
    assert all(group["params"] and group["lr_scale"] == 1.0 for group in groups)


def test_the_default_rules_exempt_what_the_recipe_exempts() -> None:
    names = ["blocks.0.mlp.weight", "class_token", "position", "mask_token", "norm.weight"]
    named = [(name, nn.Parameter(torch.zeros(1, 2, 3))) for name in names]
    optimizer = AdamWConfig(weight_decay=0.2).build(named)
    decayed = [p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]]
    assert [id(p) for p in decayed] == [id(named[0][1])]


def test_the_fused_step_is_the_plain_one() -> None:
    fused, plain = module_of(), module_of()
    config = AdamWConfig(weight_decay=0.1, betas=(0.8, 0.9))
    ours = config.build(list(fused.named_parameters()))
    groups = decay_groups(list(plain.named_parameters()), 0.1, config.no_decay)
    theirs = torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=False, foreach=False
    )
    before = copy.deepcopy(dict(fused.named_parameters()))
    train(fused, ours, 5)
    train(plain, theirs, 5)
    for (name, mine), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        # The same formula in another order of operations: float32 rounding over five steps.
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6, msg=name)
        assert not torch.equal(mine, before[name])


def test_betas_of_one_are_refused() -> None:
    with refuses("betas", "below 1", "1.0"):
        AdamWConfig.from_dict({"kind": "adamw", "betas": [0.9, 1.0]})
