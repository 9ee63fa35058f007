import copy
import functools
import sys
from pathlib import Path

import pytest
import torch
from tallies import apply_tallies, set_groups, take_tallies, tallying
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from errors import refuses
from quadriga import randomness
from quadriga.models.parts.batch_norm import BatchNorm, Reduce
from quadriga.models.parts.initialise import initialise
from ranks import run_ranks

SHAPES = [(12, 5), (12, 5, 3, 4)]


def values(shape: tuple[int, ...], name: str = "values") -> Tensor:
    source = randomness.generator(0, name)
    return torch.empty(shape).normal_(2.0, 3.0, generator=source)


def made(features: int = 5) -> BatchNorm:
    norm = BatchNorm(features)
    initialise(norm, seed=0)
    with torch.no_grad():
        norm.weight.copy_(values((features,), "weight"))
        norm.bias.copy_(values((features,), "bias"))
    return norm.train()


def of_torch(norm: BatchNorm, dim: int) -> nn.BatchNorm1d | nn.BatchNorm2d:
    theirs = (nn.BatchNorm1d if dim == 2 else nn.BatchNorm2d)(norm.weight.numel())
    theirs.load_state_dict(norm.state_dict())
    return theirs.train()


def passed(norm: nn.Module, given: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of the input and the parameters."""
    given = given.clone().requires_grad_()
    output = norm(given)
    output.backward(values(output.shape, "gradient").to(output.dtype))
    gradients = [given.grad, *(p.grad for p in norm.parameters())]
    norm.zero_grad()
    return output.detach(), [g.clone() for g in gradients if g is not None]


def step(norm: nn.Module) -> None:
    apply_tallies(norm, take_tallies(norm))


@pytest.mark.parametrize("shape", SHAPES)
def test_one_group_is_torch(shape: tuple[int, ...]) -> None:
    ours = made()
    theirs = of_torch(ours, len(shape))
    for number in range(3):
        given = values(shape, f"step {number}")
        with tallying(ours):
            own = passed(ours, given)
        expected = passed(theirs, given)
        assert torch.equal(own[0], expected[0])
        assert all(map(torch.equal, own[1], expected[1]))
        step(ours)
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-6, atol=1e-7)
    assert ours.num_batches_tracked == 3
    given = values(shape, "evaluation")
    own, expected = passed(ours.eval(), given), passed(theirs.eval(), given)
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_groups_are_each_group_alone(shape: tuple[int, ...]) -> None:
    ours, given = made(), values(shape)
    set_groups(ours, 4)
    output, gradients = passed(ours, given)
    given = given.clone().requires_grad_()
    theirs = of_torch(ours, len(shape))
    expected = torch.cat([theirs(part) for part in given.split(4)])
    assert torch.equal(output, expected)
    expected.backward(values(shape, "gradient"))
    wanted = [given.grad, *(p.grad for p in theirs.parameters())]
    torch.testing.assert_close(gradients, wanted, rtol=1e-6, atol=1e-5)
    assert not torch.allclose(output, made()(values(shape)))


def test_running_statistics_move_once_by_the_mean_over_groups() -> None:
    ours, micro_batches = made(), [values((8, 5), "one"), values((8, 5), "two")]
    set_groups(ours, 4)
    before = copy.deepcopy(ours.state_dict())
    with tallying(ours):
        for micro_batch in micro_batches:
            ours(micro_batch)
    assert all(torch.equal(t, before[name]) for name, t in ours.state_dict().items())
    step(ours)
    groups = torch.cat(micro_batches).view(4, 4, 5)
    mean, var = groups.mean(dim=(0, 1)), groups.var(dim=1).mean(dim=0)
    torch.testing.assert_close(ours.running_mean, 0.1 * mean)
    torch.testing.assert_close(ours.running_var, 0.9 + 0.1 * var)
    assert ours.num_batches_tracked == 1

    after = copy.deepcopy(ours.state_dict())
    step(ours)  # nothing was tallied since
    assert all(torch.equal(t, after[name]) for name, t in ours.state_dict().items())


def test_tallies_of_ranks_add_up() -> None:
    whole, halves, given = made(), (made(), made()), values((8, 5))
    for norm in (whole, *halves):
        set_groups(norm, 2)
    with tallying(whole):
        whole(given)
    step(whole)
    for half, part in zip(halves, given.split(4), strict=True):
        with tallying(half):
            half(part)
    taken = [take_tallies(half) for half in halves]
    sums = {name: taken[0][name] + taken[1][name] for name in taken[0]}
    for half in halves:
        apply_tallies(half, sums)
        torch.testing.assert_close(half.state_dict(), whole.state_dict())


def test_only_what_is_tallied_counts() -> None:
    model = nn.Sequential(made(), nn.Linear(5, 5), made())
    initialise(model[1], seed=0)
    given = values((8, 5)).requires_grad_()
    model(given)
    assert not any(tally.any() for tally in take_tallies(model).values())
    with tallying(model):
        output = checkpoint(model, given, use_reentrant=False)
    output.sum().backward()  # computes the forward pass again
    tallies = take_tallies(model)
    assert tallies.keys() == {"0", "2"}
    assert all(torch.equal(tally[2], torch.ones(5)) for tally in tallies.values())
    model.eval()
    with tallying(model):
        model(given)
    assert not any(tally.any() for tally in take_tallies(model).values())


def test_tallies_are_in_no_file() -> None:
    assert list(made().state_dict()) == list(nn.BatchNorm1d(5).state_dict())


@pytest.mark.parametrize("shape", SHAPES)
def test_reduced_precision_has_statistics_in_float32(shape: tuple[int, ...]) -> None:
    given = values(shape).bfloat16()
    for reduce in (None, lambda tensor: tensor):
        norm = made()
        set_groups(norm, None, reduce)
        with tallying(norm):
            output = norm(given)
        assert output.dtype == torch.bfloat16
        flat = given.float().transpose(0, 1).flatten(1)
        sums = torch.stack([flat.mean(dim=1), flat.var(dim=1), torch.ones(5)])
        torch.testing.assert_close(take_tallies(norm)[""], sums, rtol=1e-5, atol=1e-5)


def test_a_large_mean_cancels_nothing() -> None:
    given = values((64, 5)) * 0.01 + 1000.0
    norm = made()
    set_groups(norm, None, lambda tensor: tensor)
    exact = of_torch(norm, 2).double()(given.double())
    torch.testing.assert_close(norm(given).double(), exact, rtol=1e-3, atol=1e-2)


def test_empty_shares() -> None:
    norm = made()
    for reduce in (None, functools.partial(torch.add, torch.tensor(4.0))):
        set_groups(norm, None, reduce)
        for shape in ((0, 5), (0, 5, 2, 2)):
            output, gradients = passed(norm, torch.empty(shape))
            assert output.shape == shape
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_groups_that_cannot_be() -> None:
    norm = made()
    with refuses("train.batch_size"):
        norm(values((1, 5)))
    assert norm(values((1, 5, 2, 2))).isfinite().all()
    set_groups(norm, 4)
    with pytest.raises(ValueError, match="multiple"):
        norm(values((6, 5)))


def test_a_group_over_ranks_is_the_group_on_one_rank() -> None:
    worker = Path(__file__).with_name("batch_norm_worker.py")
    for result in run_ranks([sys.executable, str(worker)], 2, timeout=120):
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("reduce", [None, torch.clone])
def test_without_factors_it_only_normalises(reduce: Reduce | None) -> None:
    norm = BatchNorm(5, affine=False)
    initialise(norm, seed=0)
    assert not list(norm.parameters())
    given = values((12, 5))
    theirs = nn.BatchNorm1d(5, affine=False)
    torch.testing.assert_close(norm.train()(given, reduce), theirs.train()(given))
    theirs.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm.eval()(given, reduce), theirs.eval()(given))
