"""The regulariser against the implementation of DINOv2, written out."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quadriga import randomness
from quadriga.losses.koleo import koleo


def normal(rows: int) -> Tensor:
    source = randomness.generator(0, "koleo")
    return torch.empty(rows, 6).normal_(generator=source).requires_grad_()


def reference(rows: Tensor) -> Tensor:
    rows = functional.normalize(rows, eps=1e-8, p=2, dim=-1)
    dots = torch.mm(rows, rows.t())
    dots.view(-1)[:: len(rows) + 1].fill_(-1)
    nearest = torch.max(dots, dim=1)[1]
    distances = torch.nn.PairwiseDistance(2, eps=1e-8)(rows, rows[nearest])
    return -torch.log(distances + 1e-8).mean()


@pytest.mark.parametrize(
    ("count", "cuts"), [(13, [0, 13]), (32, [0, 16, 32]), (37, [0, 16, 37]), (2, [0, 2])]
)
def test_it_is_the_reference_in_each_group(count: int, cuts: list[int]) -> None:
    rows = normal(count)
    parts = [rows[a:b] for a, b in itertools.pairwise(cuts)]
    expected = sum((reference(part) * len(part) for part in parts), torch.zeros(())) / count
    with torch.autocast("cpu", torch.bfloat16):
        found = koleo(rows, 16)
    torch.testing.assert_close(found, expected)
    own, wanted = (torch.autograd.grad(loss, rows)[0] for loss in (found, expected))
    torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_neighbour_it_is_zero(count: int) -> None:
    rows = normal(count)
    loss = koleo(rows, 16)
    assert loss == 0
    assert not torch.autograd.grad(loss, rows)[0].any()


def test_equal_rows_stay_finite() -> None:
    rows = torch.ones(4, 6).requires_grad_()
    loss = koleo(rows, 16)
    assert 10 < loss < 20
    assert torch.autograd.grad(loss, rows)[0].isfinite().all()
