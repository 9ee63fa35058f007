"""The losses against torch's own, on the matrix of targets that they do without."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from quadriga.losses.soft_targets import soft_target_loss

BATCH = 7


def drawn(classes, seed, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    scores = torch.randn(BATCH, classes, generator=source, dtype=dtype) * 3
    label, mixed = torch.randint(classes, (2, BATCH), generator=source)
    share = torch.rand(BATCH, generator=source)
    share[:3] = torch.tensor([0.0, 1.0, 0.5])
    mixed[3] = label[3]
    return scores.float(), label, mixed, share


@settings(max_examples=30, deadline=None)
@given(
    classes=st.integers(2, 9),
    seed=st.integers(0, 1000),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    is_mixed=st.booleans(),
    binary=st.booleans(),
)
def test_the_losses_are_those_of_the_matrix(classes, seed, smoothing, is_mixed, binary):
    scores, label, mixed, share = drawn(classes, seed)
    scores.requires_grad_(True)
    own = functional.one_hot(label, classes).float()
    other = functional.one_hot(mixed, classes).float()
    target = share[:, None] * own + (1 - share[:, None]) * other if is_mixed else own
    if binary:
        target = (target > 0).float()
    target = (1 - smoothing) * target + smoothing / classes
    if binary:
        expected = functional.binary_cross_entropy_with_logits(scores, target) * BATCH
    else:
        expected = functional.cross_entropy(scores, target, reduction="sum")
    (wanted,) = torch.autograd.grad(expected, scores)
    pair = (mixed, share) if is_mixed else (None, None)
    criterion = "binary_cross_entropy" if binary else "cross_entropy"
    found = soft_target_loss(scores, label, *pair, smoothing, criterion)
    (gradient,) = torch.autograd.grad(found, scores)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("criterion", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_float32_whatever_the_scores(criterion, dtype):
    scores, label, mixed, share = drawn(9, 0)
    narrow = scores.to(dtype)
    found = soft_target_loss(narrow, label, mixed, share, 0.1, criterion)
    assert found.dtype == torch.float32
    assert torch.equal(found, soft_target_loss(narrow.float(), label, mixed, share, 0.1, criterion))
