"""What every file of the optimizers' room must keep to; a new file is found by itself."""

from __future__ import annotations

import json

import pytest
import torch
from optim_modules import Named, make_steps, named_parameters

from errors import refuses
from quadriga.config.base import construct, kinds
from quadriga.contracts import OptimizerConfig
from quadriga.optim.parts.groups import materialise_state

KINDS = kinds(OptimizerConfig)  # type: ignore[type-abstract]

pytestmark = pytest.mark.parametrize("kind", KINDS)


def config_of(kind: str, **values: object) -> OptimizerConfig:
    return construct(OptimizerConfig, {"kind": kind, **values})  # type: ignore[type-abstract]


def state_of(named: Named, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return parameters and state under global names, as a checkpoint has them."""
    state = {f"objective.{name}": parameter for name, parameter in named}
    for name, parameter in named:
        for key, value in optimizer.state[parameter].items():
            state[f"optimizer.{name}.{key}"] = value
    return state


def assert_bit_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def test_config_round_trips_through_json(kind: str) -> None:
    config = config_of(kind, lr_scales={"head": 2.0}, layer_decay=0.7, clip_norm=1.0)
    again = construct(OptimizerConfig, json.loads(config.as_json()))  # type: ignore[type-abstract]
    assert again == config
    assert config.kind() == kind
    assert config.override({"lr_scales.head": "3"}).lr_scales == {"head": 3.0}


@pytest.mark.parametrize("steps", [1, 3])
def test_a_materialised_state_is_the_one_made_by_the_first_step(kind: str, steps: int) -> None:
    lazy, made = named_parameters(), named_parameters()
    optimizers = [config_of(kind).build(named) for named in (lazy, made)]
    materialise_state(optimizers[1])
    begun = state_of(made, optimizers[1])
    for name, tensor in begun.items():
        if name.startswith("optimizer."):
            assert not tensor.any(), name
    for (name, parameter), (_, original) in zip(made, named_parameters(), strict=True):
        assert torch.equal(parameter, original), name
    for named, optimizer in zip((lazy, made), optimizers, strict=True):
        make_steps(named, optimizer, range(steps))
    assert_bit_equal(state_of(made, optimizers[1]), state_of(lazy, optimizers[0]))
    assert begun.keys() == state_of(made, optimizers[1]).keys()


def test_a_resumed_run_is_one_that_never_stopped(kind: str) -> None:
    whole, first, second = named_parameters(), named_parameters(), named_parameters()
    optimizers = [config_of(kind).build(named) for named in (whole, first, second)]
    for optimizer in optimizers:
        materialise_state(optimizer)
    make_steps(whole, optimizers[0], range(5))
    make_steps(first, optimizers[1], range(2))
    saved = {
        name: tensor.detach().clone() for name, tensor in state_of(first, optimizers[1]).items()
    }
    with torch.no_grad():
        for name, tensor in state_of(second, optimizers[2]).items():
            tensor.copy_(saved[name])
    make_steps(second, optimizers[2], range(2, 5))
    assert_bit_equal(state_of(whole, optimizers[0]), state_of(second, optimizers[2]))


def test_the_state_dict_of_torch_carries_the_state(kind: str) -> None:
    whole, part = named_parameters(), named_parameters()
    optimizers = [config_of(kind).build(named) for named in (whole, part)]
    make_steps(whole, optimizers[0], range(4))
    make_steps(part, optimizers[1], range(2))
    fresh = config_of(kind).build(part)
    fresh.load_state_dict(optimizers[1].state_dict())
    make_steps(part, fresh, range(2, 4))
    assert_bit_equal(state_of(whole, optimizers[0]), state_of(part, fresh))


def test_every_trained_parameter_moves_and_no_other(kind: str) -> None:
    named = named_parameters()
    frozen = "blocks.0.norm.weight"
    dict(named)[frozen].requires_grad_(False)
    optimizer = config_of(kind).build(named)
    make_steps([(n, p) for n, p in named if n != frozen], optimizer, range(2))
    for (name, parameter), (_, original) in zip(named, named_parameters(), strict=True):
        assert torch.equal(parameter, original) == (name == frozen), name


def test_a_parameter_without_a_gradient_stays(kind: str) -> None:
    named = named_parameters()
    optimizer = config_of(kind).build(named)
    materialise_state(optimizer)
    make_steps(named[:-1], optimizer, range(2))
    name, original = named_parameters()[-1]
    assert torch.equal(dict(named)[name], original)
    assert not any(value.any() for value in optimizer.state[dict(named)[name]].values())


def test_a_gradient_is_not_written_to(kind: str) -> None:
    named = named_parameters()
    optimizer = config_of(kind).build(named)
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in named:
        assert torch.equal(parameter.grad, torch.ones_like(parameter)), name


def test_the_closure_is_called_with_gradients_on(kind: str) -> None:
    named = named_parameters()
    optimizer = config_of(kind).build(named)

    def closure() -> float:
        sum(parameter.square().sum() for _, parameter in named).backward()
        return 3.5

    assert optimizer.step(closure) == 3.5
    for (name, parameter), (_, original) in zip(named, named_parameters(), strict=True):
        assert not torch.equal(parameter, original), name


def test_the_lr_scale_of_a_group_scales_its_step(kind: str) -> None:
    """A step with no decay from a fresh state is proportional to the learning rate."""
    values = {"weight_decay": 0.0}
    plain, scaled = named_parameters(torch.float64), named_parameters(torch.float64)
    make_steps(plain, config_of(kind, **values).build(plain), range(1))
    build = config_of(kind, lr_scales={"head": 0.5}, **values).build
    make_steps(scaled, build(scaled), range(1))
    for (name, one), (_, two), (_, zero) in zip(
        plain, scaled, named_parameters(torch.float64), strict=True
    ):
        factor = 0.5 if "head" in name else 1.0
        torch.testing.assert_close(two - zero, factor * (one - zero), msg=name)


def test_unknown_parts_and_keys_are_refused(kind: str) -> None:
    with refuses("optim.lr_scales", "'haed'"):
        config_of(kind, lr_scales={"haed": 2.0}).build(named_parameters())
    with refuses("no_such_key", "unknown"):
        config_of(kind).override({"no_such_key": 1})
