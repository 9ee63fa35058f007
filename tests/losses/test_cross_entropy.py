"""The chunked cross-entropy against the plain one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quadriga import randomness
from quadriga.losses.cross_entropy import linear_cross_entropy

ROWS, WIDTH, WORDS = 13, 8, 31


def inputs(rows: int = ROWS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = randomness.generator(seed, "cross entropy")

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(generator=source).requires_grad_()

    targets = torch.randint(0, WORDS, (rows,), generator=source)
    return normal(rows, WIDTH), normal(WORDS, WIDTH), normal(WORDS), targets


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = functional.linear(hidden, weight, bias)
    loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
    return loss, (logits.argmax(dim=1) == targets).sum()


def gradients(loss: Tensor, of: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss * 0.7, of)


@pytest.mark.parametrize("chunk_rows", [1, 4, 6, ROWS, 100])
def test_it_is_the_plain_one(chunk_rows: int) -> None:
    tensors = inputs()
    loss, hits = linear_cross_entropy(*tensors, chunk_elements=chunk_rows * WORDS)
    expected, expected_hits = plain(*tensors)
    torch.testing.assert_close(loss, expected)
    assert hits == expected_hits
    for actual, wanted in zip(
        gradients(loss, tensors[:3]), gradients(expected, tensors[:3]), strict=True
    ):
        torch.testing.assert_close(actual, wanted)


def test_hits_count_the_rows_whose_target_is_greatest() -> None:
    hidden, weight, bias, _ = inputs()
    best = functional.linear(hidden, weight, bias).argmax(dim=1)
    worst = functional.linear(hidden, weight, bias).argmin(dim=1)
    assert linear_cross_entropy(hidden, weight, bias, best)[1] == ROWS
    assert linear_cross_entropy(hidden, weight, bias, worst)[1] == 0


def test_chunks_bound_the_logits_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = torch.addmm

    def noted(*arguments: Tensor) -> Tensor:
        result = original(*arguments)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch, "addmm", noted)
    linear_cross_entropy(*inputs(), chunk_elements=4 * WORDS)
    assert sizes == [4 * WORDS, 4 * WORDS, 4 * WORDS, WORDS]


@pytest.mark.parametrize("chunk_rows", [4, 100])
def test_without_gradients_the_values_are_the_same(chunk_rows: int) -> None:
    tensors = inputs()
    with torch.no_grad():
        loss, hits = linear_cross_entropy(*tensors, chunk_elements=chunk_rows * WORDS)
    assert not loss.requires_grad
    expected = linear_cross_entropy(*tensors, chunk_elements=chunk_rows * WORDS)
    assert torch.equal(loss, expected[0])
    assert torch.equal(hits, expected[1])


@pytest.mark.parametrize("chunk_rows", [4, 100])
def test_under_autocast_products_are_narrow_and_sums_are_not(chunk_rows: int) -> None:
    tensors = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(*tensors, chunk_elements=chunk_rows * WORDS)
        expected, _ = plain(*tensors)
    assert loss.dtype == torch.float32
    exact, _ = plain(*tensors)
    assert not torch.equal(loss, exact)
    torch.testing.assert_close(loss, expected)
    for actual, wanted in zip(
        gradients(loss, tensors[:3]), gradients(exact, tensors[:3]), strict=True
    ):
        assert actual.dtype == torch.float32
        assert (actual - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_no_rows_make_no_loss_and_gradients_of_zero() -> None:
    tensors = inputs(rows=0)
    loss, hits = linear_cross_entropy(*tensors)
    assert loss == 0
    assert hits == 0
    for gradient in gradients(loss, tensors[:3]):
        assert not gradient.any()


def test_only_what_trains_gets_a_gradient() -> None:
    hidden, weight, bias, targets = inputs()
    weight.requires_grad_(False)
    loss, _ = linear_cross_entropy(hidden, weight, bias, targets, chunk_elements=4 * WORDS)
    loss.backward()
    assert weight.grad is None
    assert hidden.grad is not None
