"""Losses over prototypes against the plain formulas, and Sinkhorn against the paper's loop."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quadriga import randomness
from quadriga.losses import prototypes as module
from quadriga.losses.prototypes import prototype_cross_entropy, sinkhorn_offset

ROWS, WIDTH, COUNT = 13, 8, 31


def normal(name: str, *shape: int) -> Tensor:
    values = torch.empty(shape).normal_(generator=randomness.generator(0, name))
    return functional.normalize(values, dim=1) if len(shape) > 1 else values


def inputs(rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    student = normal("student", rows, WIDTH).requires_grad_()
    table = normal("table", COUNT, WIDTH).requires_grad_()
    return (
        student,
        table,
        normal("teacher", rows, WIDTH),
        normal("other", COUNT, WIDTH),
        normal("offset", COUNT),
    )


def plain(
    student: Tensor, table: Tensor, teacher: Tensor, other: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    targets = torch.softmax(teacher @ other.T / 0.05 + offset, dim=1)
    loss = -(targets * torch.log_softmax(student @ table.T / 0.1, dim=1)).sum()
    return loss, -torch.special.xlogy(targets, targets).sum()


def ours(tensors: tuple[Tensor, ...], chunk_rows: int) -> tuple[Tensor, Tensor]:
    student, table, teacher, other, offset = tensors
    return prototype_cross_entropy(
        student[:, None],
        table,
        0.1,
        teacher[:, None],
        other,
        0.05,
        offset,
        chunk_elements=chunk_rows * COUNT,
    )


@pytest.mark.parametrize("chunk_rows", [1, 4, ROWS, 100])
def test_it_is_the_plain_one(chunk_rows: int) -> None:
    tensors = inputs()
    loss, entropy = ours(tensors, chunk_rows)
    expected, expected_entropy = plain(*tensors)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    assert not entropy.requires_grad
    for own, wanted in zip(
        torch.autograd.grad(loss * 0.7, tensors[:2]),
        torch.autograd.grad(expected * 0.7, tensors[:2]),
        strict=True,
    ):
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("per_target", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 12, 100])
def test_pairs_are_the_sum_of_the_plain_ones(chunk_rows: int, per_target: bool) -> None:
    views = [normal(f"view {n}", ROWS, WIDTH).requires_grad_() for n in range(3)]
    targets = [normal(f"target {n}", ROWS, WIDTH) for n in range(2)]
    _, table, _, other, _ = inputs()
    offset = torch.stack([normal(f"offset {n * per_target}", COUNT) for n in range(2)])
    weights = torch.arange(ROWS, dtype=torch.float32) / 3
    pairs = [[0.0, 0.3], [0.7, 0.0], [1.5, 0.5]]
    found, entropy = prototype_cross_entropy(
        torch.stack(views, dim=1),
        table,
        0.1,
        torch.stack(targets, dim=1),
        other,
        0.05,
        offset if per_target else offset[0],
        pairs,
        weights,
        chunk_elements=chunk_rows * COUNT,
    )
    expected, entropies = 0.0, 0.0
    for n in range(ROWS):
        for t, target in enumerate(targets):
            for v, view in enumerate(views):
                loss, own = plain(view[n : n + 1], table, target[n : n + 1], other, offset[t])
                expected = expected + weights[n] * pairs[v][t] * loss
            entropies = entropies + weights[n] * own
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropy, entropies)
    for one, wanted in zip(
        torch.autograd.grad(found, [*views, table]),
        torch.autograd.grad(expected, [*views, table]),
        strict=True,
    ):
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-4)


def test_no_gradient_reaches_the_target() -> None:
    student, table, *others = inputs()
    others = [tensor.requires_grad_() for tensor in others]
    loss, _ = ours((student, table, *others), 4)
    assert torch.autograd.grad(loss, others, allow_unused=True) == (None, None, None)


def test_no_rows_no_loss() -> None:
    tensors = inputs(0)
    loss, _ = ours(tensors, 4)
    assert loss == 0
    assert not torch.autograd.grad(loss, tensors[1])[0].any()


def test_scores_are_not_kept_for_the_backward_pass() -> None:
    kept = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = ours(inputs(), 4)
    assert kept
    assert all(COUNT not in shape[1:] for shape in kept)
    loss.backward()


def loop(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """``sinkhorn`` of the paper's pseudo-code (appendix A)."""
    matrix = torch.exp(scores / epsilon).T
    matrix /= matrix.sum()
    count, rows = matrix.shape
    u, r, c = torch.zeros(count), torch.ones(count) / count, torch.ones(rows) / rows
    for _ in range(iterations):
        u = matrix.sum(dim=1)
        matrix *= (r / u).unsqueeze(1)
        matrix *= (c / matrix.sum(dim=0)).unsqueeze(0)
    return (matrix / matrix.sum(dim=0, keepdim=True)).T


@pytest.mark.parametrize("iterations", [1, 3, 20])
@pytest.mark.parametrize("chunk_rows", [4, 100])
def test_sinkhorn_is_the_papers_loop(iterations: int, chunk_rows: int) -> None:
    rows, table = normal("student", ROWS, WIDTH), normal("table", COUNT, WIDTH)
    offset = sinkhorn_offset(rows, table, 0.05, iterations, torch.clone, None, chunk_rows * COUNT)
    found = torch.softmax(rows @ table.T / 0.05 + offset, dim=1)
    expected = loop((rows @ table.T).double(), 0.05, iterations)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_ranks_with_uneven_and_no_rows_agree() -> None:
    rows, table = normal("student", ROWS, WIDTH), normal("table", COUNT, WIDTH)
    shares = torch.split(rows, [5, 0, 8])
    barrier = threading.Barrier(len(shares))
    given: list[Tensor] = [torch.empty(0)] * len(shares)

    def rank(number: int) -> Tensor:
        def reduce(own: Tensor) -> Tensor:
            given[number] = own
            barrier.wait(60)
            total = sum(given[1:], given[0])
            barrier.wait(60)
            return total

        return sinkhorn_offset(shares[number], table, 0.05, 3, reduce)

    with ThreadPoolExecutor(len(shares)) as pool:
        found = list(pool.map(rank, range(len(shares))))
    expected = sinkhorn_offset(rows, table, 0.05, 3, torch.clone)
    for own in found:
        torch.testing.assert_close(own, expected)


def test_rows_of_weight_nothing_are_left_out() -> None:
    rows, table = normal("student", ROWS, WIDTH), normal("table", COUNT, WIDTH)
    padded = torch.cat([rows, torch.zeros(3, WIDTH)])
    weights = torch.cat([torch.ones(ROWS), torch.zeros(3)])
    expected = sinkhorn_offset(rows, table, 0.05, 3, torch.clone)
    found = sinkhorn_offset(padded, table, 0.05, 3, torch.clone, weights)
    torch.testing.assert_close(found, expected)
    none = sinkhorn_offset(padded, table, 0.05, 3, torch.clone, 0 * weights)
    assert not none.any()


def test_assignments_are_balanced_where_scores_are_not() -> None:
    rows = functional.normalize(normal("student", 60, WIDTH) + 3 * normal("shift", 1, WIDTH), dim=1)
    table = normal("table", 10, WIDTH)
    offset = sinkhorn_offset(rows, table, 0.05, 300, torch.clone)
    masses = torch.softmax(rows @ table.T / 0.05 + offset, dim=1).sum(dim=0)
    torch.testing.assert_close(masses, torch.full((10,), 6.0), rtol=0.02, atol=0)
    assert torch.softmax(rows @ table.T / 0.05, dim=1).sum(dim=0).max() > 12


def test_sharp_assignments_stay_finite() -> None:
    rows, table = normal("student", ROWS, WIDTH), normal("table", COUNT, WIDTH)
    assert sinkhorn_offset(rows, table, 0.002, 3, torch.clone).isfinite().all()


def test_only_a_chunk_of_scores_exists_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, original = [], torch.logsumexp

    def noted(scores: Tensor, *arguments: object, **named: object) -> Tensor:
        sizes.append(scores.shape[0])
        return original(scores, *arguments, **named)

    monkeypatch.setattr(module.torch, "logsumexp", noted)
    rows, table = normal("student", ROWS, WIDTH), normal("table", COUNT, WIDTH)
    sinkhorn_offset(rows, table, 0.05, 3, torch.clone, None, 4 * COUNT)
    assert max(sizes) == 4
