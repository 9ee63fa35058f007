"""The recipes of MAE against the rules of their reference."""

from __future__ import annotations

import pytest

from quadriga.engine.build import build_on_meta
from quadriga.recipes import mae


@pytest.mark.parametrize("recipe", [mae.mae_digits, mae.mae_cifar10, mae.mae_vit_small])
def test_what_decays_is_what_decays_in_the_reference(recipe: object) -> None:
    """Its `add_weight_decay` exempts parameters of one dimension and those that end in bias."""
    config = recipe()  # type: ignore[operator]
    named = [(n, p) for n, p in build_on_meta(config).named_parameters() if p.requires_grad]
    optimizer = config.optim.build(named)
    names = {id(parameter): name for name, parameter in named}
    decayed = {
        names[id(p)]
        for group in optimizer.param_groups
        for p in group["params"]
        if group["weight_decay"]
    }
    assert decayed == {n for n, p in named if p.ndim > 1 and not n.endswith(".bias")}
    assert {"encoder.class_token", "decoder.mask_token"} <= decayed
