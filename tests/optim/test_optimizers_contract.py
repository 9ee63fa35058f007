"""What every file of the optimizers' room must keep to; a new file is found by itself."""

from __future__ import annotations

import json

import pytest
import torch
from optim_modules import Named, make_steps, named_parameters

from errors import refuses
from quadriga.config.base import construct, kinds
from quadriga.contracts import OptimizerConfig
from quadriga.engine.step.state import (
    copy_state,
    match_optimizer_state,
    optimizer_state,
    without_unbegun,
)

KINDS = kinds(OptimizerConfig)  # type: ignore[type-abstract]

pytestmark = pytest.mark.parametrize("kind", KINDS)


def config_of(kind: str, **values: object) -> OptimizerConfig:
    return construct(OptimizerConfig, {"kind": kind, **values})  # type: ignore[type-abstract]


def state_of(named: Named, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return parameters and state under global names, as a checkpoint has them."""
    return {f"objective.{name}": p for name, p in named} | optimizer_state(optimizer, dict(named))


def load(
    named: Named, optimizer: torch.optim.Optimizer, state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Load a state as executors do; return what was loaded."""
    state = without_unbegun(state)
    match_optimizer_state(optimizer, dict(named), state)
    copy_state(state_of(named, optimizer), state)
    return state


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


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


def test_state_made_to_be_read_into_is_that_of_a_step(kind: str) -> None:
    stepped, made = named_parameters(), named_parameters()
    optimizers = [config_of(kind).build(named) for named in (stepped, made)]
    rates = [group["lr"] for group in optimizers[1].param_groups]
    make_steps(stepped, optimizers[0], range(1))
    expected = optimizer_state(optimizers[0], dict(stepped))
    match_optimizer_state(optimizers[1], dict(made), expected)
    found = optimizer_state(optimizers[1], dict(made))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        theirs = expected[name]
        assert (tensor.shape, tensor.dtype) == (theirs.shape, theirs.dtype), name
        assert (tensor.device, tensor.stride()) == (theirs.device, theirs.stride()), name
    for (name, parameter), (_, original) in zip(made, named_parameters(), strict=True):
        assert torch.equal(parameter, original), name
        assert parameter.grad is None
    assert [group["lr"] for group in optimizers[1].param_groups] == rates


@pytest.mark.parametrize("other_steps", [0, 3])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_resumed_run_is_one_that_never_stopped(kind: str, steps: int, other_steps: int) -> None:
    """Also where the optimizer that loads has made steps of its own."""
    whole, first, second = named_parameters(), named_parameters(), named_parameters()
    optimizers = [config_of(kind).build(named) for named in (whole, first, second)]
    make_steps(whole, optimizers[0], range(5))
    make_steps(first, optimizers[1], range(steps))
    make_steps(second, optimizers[2], range(10, 10 + other_steps))
    load(second, optimizers[2], copied(state_of(first, optimizers[1])))
    assert_bit_equal(state_of(first, optimizers[1]), state_of(second, optimizers[2]))
    make_steps(second, optimizers[2], range(steps, 5))
    assert_bit_equal(state_of(whole, optimizers[0]), state_of(second, optimizers[2]))


def test_state_of_zeros_is_that_before_the_first_step(kind: str) -> None:
    """Runs until revision 7f9c01b stored it, also of parameters without a gradient."""
    whole, old = named_parameters(), named_parameters()
    optimizers = [config_of(kind).build(named) for named in (whole, old)]
    make_steps(whole, optimizers[0], range(3))
    state = copied(state_of(whole, optimizers[0]))
    for name, tensor in state.items():
        if name.startswith("optimizer."):
            tensor.zero_()
    loaded = load(old, optimizers[1], state | {f"objective.{n}": p for n, p in named_parameters()})
    counted = [name.removesuffix(".step") for name in state if name.endswith(".step")]
    assert not any(name.rpartition(".")[0] in counted for name in loaded)
    make_steps(old, optimizers[1], range(3))
    assert_bit_equal(state_of(whole, optimizers[0]), state_of(old, optimizers[1]))


def test_names_on_one_side_alone_are_told(kind: str) -> None:
    named = named_parameters()
    optimizer = config_of(kind).build(named)
    make_steps(named, optimizer, range(1))
    state = copied(state_of(named, optimizer))
    key = next(name for name in state if name.startswith("optimizer.head.weight."))
    for wrong in ("optimizer.head.weight.other", "optimizer.other.exp_avg"):
        with pytest.raises(ValueError, match=wrong):
            load(named, optimizer, {**state, wrong: torch.ones(())})
    if sum(name.startswith("optimizer.head.weight.") for name in state) > 1:
        with pytest.raises(ValueError, match=key):
            load(named, optimizer, {name: t for name, t in state.items() if name != key})


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
    make_steps(named[:-1], optimizer, range(2))
    name, original = named_parameters()[-1]
    assert torch.equal(dict(named)[name], original)
    assert not any(key.startswith(f"optimizer.{name}.") for key in state_of(named, optimizer))


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
    with refuses("optim.constant_lr", "'haed'"):
        config_of(kind, constant_lr=("haed",)).build(named_parameters())
    with refuses("no_such_key", "unknown"):
        config_of(kind).override({"no_such_key": 1})
