"""The optimizers that torch has too, against torch's own, one tensor at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim_modules import assert_same, gradient, lr_at, make_steps, named_parameters, trained

from errors import refuses
from quadriga.contracts import OptimizerConfig
from quadriga.optim.adafactor import AdafactorConfig
from quadriga.optim.adam import AdamConfig, NAdamConfig, RAdamConfig
from quadriga.optim.parts.groups import decay_groups
from quadriga.optim.sgd import AdadeltaConfig, RMSpropConfig

STEPS = 8
"""Beyond the fifth, from which on RAdam trusts a second moment of decay 0.999."""
EXACT = 1e-12
"""Float64, the same equations in another order of operations."""

BETAS = (0.8, 0.95)
CASES = [
    (AdamConfig(betas=BETAS, eps=1e-3), torch.optim.Adam, {"betas": BETAS, "eps": 1e-3}),
    (
        AdamConfig(amsgrad=True, weight_decay=0.1),
        torch.optim.Adam,
        {"amsgrad": True, "weight_decay": 0.1},
    ),
    (
        RAdamConfig(weight_decay=0.1),
        torch.optim.RAdam,
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    (
        RAdamConfig(betas=BETAS, eps=1e-3, weight_decay=0.1, decoupled=False),
        torch.optim.RAdam,
        {"betas": BETAS, "eps": 1e-3, "weight_decay": 0.1},
    ),
    (
        NAdamConfig(weight_decay=0.1),
        torch.optim.NAdam,
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    (
        NAdamConfig(betas=BETAS, eps=1e-3, weight_decay=0.1, decoupled=False, momentum_decay=0.02),
        torch.optim.NAdam,
        {"betas": BETAS, "eps": 1e-3, "weight_decay": 0.1, "momentum_decay": 0.02},
    ),
    (
        RMSpropConfig(weight_decay=0.1),
        torch.optim.RMSprop,
        {"alpha": 0.9, "momentum": 0.9, "weight_decay": 0.1},
    ),
    (
        RMSpropConfig(alpha=0.8, momentum=0.0, eps=1e-3, centered=True),
        torch.optim.RMSprop,
        {"alpha": 0.8, "eps": 1e-3, "centered": True},
    ),
    (
        AdadeltaConfig(rho=0.8, eps=1e-4, weight_decay=0.1),
        torch.optim.Adadelta,
        {"rho": 0.8, "eps": 1e-4, "weight_decay": 0.1},
    ),
    (AdafactorConfig(), torch.optim.Adafactor, {"eps": (1e-30, 1e-3)}),
    (
        AdafactorConfig(beta2_exponent=0.5, least_scale=2.0, clip_threshold=1.1, weight_decay=0.1),
        torch.optim.Adafactor,
        {"eps": (1e-30, 2.0), "beta2_decay": -0.5, "d": 1.1, "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize(("config", "theirs", "values"), CASES)
def test_steps_are_torchs(
    config: OptimizerConfig, theirs: type[torch.optim.Optimizer], values: dict[str, Any]
) -> None:
    values = dict(values)
    decay = values.pop("weight_decay", 0.0)
    other = named_parameters(torch.float64)
    groups = decay_groups(other, decay, config.no_decay)
    make_steps(other, theirs(groups, foreach=False, **values), range(STEPS))
    found = trained(config, STEPS)
    assert_same(found, {name: p.detach() for name, p in other}, EXACT)


def test_adafactor_keeps_rows_and_columns_of_matrices_alone() -> None:
    named = named_parameters()
    optimizer = AdafactorConfig().build(named)
    make_steps(named, optimizer, range(1))
    for _, parameter in named:
        shapes = {key: tuple(value.shape) for key, value in optimizer.state[parameter].items()}
        whole = tuple(parameter.shape)
        if parameter.ndim == 1:
            assert shapes == {"step": (), "variance": whole}
        else:
            rows, columns = (*whole[:-1], 1), (*whole[:-2], 1, whole[-1])
            assert shapes == {"step": (), "row_variance": rows, "column_variance": columns}


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_adafactor_stays_finite(scale: float) -> None:
    named = named_parameters()
    optimizer = AdafactorConfig().build(named)
    for step in range(3):
        for name, parameter in named:
            parameter.grad = scale * gradient(name, parameter, step)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        optimizer.step()
    for (name, parameter), (_, original) in zip(named, named_parameters(), strict=True):
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter, original) == (scale == 0.0), name


def test_an_adafactor_step_is_at_most_its_share_of_the_weights() -> None:
    named = named_parameters(torch.float64)
    optimizer = AdafactorConfig().build(named)
    make_steps(named, optimizer, range(1))
    for (name, parameter), (_, original) in zip(
        named, named_parameters(torch.float64), strict=True
    ):
        share = (parameter - original).detach().norm() / original.detach().norm()
        assert float(share) <= lr_at(0) * (1 + 1e-9), name


@pytest.mark.parametrize("config", [AdamConfig, NAdamConfig, RAdamConfig])
def test_betas_of_one_are_refused(config: type[OptimizerConfig]) -> None:
    with refuses("betas", "below 1", "1.0"):
        config.from_dict({"betas": [0.9, 1.0]})
