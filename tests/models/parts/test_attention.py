"""Paths of attention: the rule, and that every path computes the same."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quadriga import randomness
from quadriga.models.parts import attention as module
from quadriga.models.parts.attention import attention, attention_path
from quadriga.models.parts.transformer import Block, BlockShape

BF16, F32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("device", "dtype", "length", "size", "path"),
    [
        ("cpu", F32, 17, 64, "fused"),
        ("cuda", BF16, 17, 64, "fused"),
        ("meta", BF16, 17, 64, "fused"),
        ("cpu", torch.float16, 17, 64, "fused"),
        ("cpu", BF16, 17, 64, "formula"),
        ("cpu", BF16, 320, 32, "formula"),
        ("cpu", BF16, 321, 32, "fused in float32"),
        ("cpu", BF16, 511, 32, "fused in float32"),
        ("cpu", BF16, 512, 32, "fused"),
        ("cpu", BF16, 640, 64, "formula"),
        ("cpu", BF16, 641, 64, "fused"),
    ],
)
def test_the_rule(device: str, dtype: torch.dtype, length: int, size: int, path: str) -> None:
    assert attention_path(device, dtype, length, size) == path


def inputs(dtype: torch.dtype) -> list[Tensor]:
    source = randomness.generator(0, "attention")
    made = [torch.empty(3, 2, 9, 8).normal_(generator=source).to(dtype) for _ in range(4)]
    return made


def boolean() -> Tensor:
    return (torch.arange(9) < torch.tensor([[9], [4], [1]]))[:, None, None]


def added() -> Tensor:
    return torch.linspace(-2, 2, 81).view(9, 9)


def result(mask: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """Return the result and the gradients, in float64."""
    *parts, gradient = inputs(dtype)
    leaves = [part.requires_grad_() for part in parts]
    with torch.autocast("cpu", BF16, enabled=dtype == BF16):
        mixed = attention(*leaves, mask)
    assert mixed.dtype == dtype
    return [t.double() for t in (mixed.detach(), *torch.autograd.grad(mixed, leaves, gradient))]


@pytest.mark.parametrize("mask", [None, boolean(), added()], ids=["none", "boolean", "added"])
@pytest.mark.parametrize("path", ["fused", "fused in float32", "formula"])
def test_paths_agree_with_the_equation(
    mask: Tensor | None, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value, gradient = (t.double() for t in inputs(BF16))
    leaves = [t.requires_grad_() for t in (query, key, value)]
    scores = torch.einsum("bhqs,bhks->bhqk", query, key) / math.sqrt(8)
    if mask is not None:
        scores = torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask
    expected = scores.softmax(-1) @ value
    wanted = [expected.detach(), *torch.autograd.grad(expected, leaves, gradient)]
    monkeypatch.setattr(module, "attention_path", lambda *_: path)
    # bfloat16 has 8 bits: a result is half a unit of the last place off, a sum of them a few.
    for found, right in zip(result(mask, BF16), wanted, strict=True):
        assert (found - right).norm() < 0.01 * right.norm()


def test_float32_is_the_fused_kernel_bit_for_bit() -> None:
    query, key, value, _ = inputs(F32)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=boolean())
    assert torch.equal(attention(query, key, value, boolean()), expected)


def test_a_sample_is_computed_alike_in_any_micro_batch() -> None:
    block = Block(BlockShape(width=16, heads=2, mlp_width=32), 0)
    source = randomness.generator(0, "micro-batch")
    for parameter in block.parameters():
        parameter.data.normal_(generator=source)
    tokens = torch.empty(6, 9, 16).normal_(generator=source)
    with torch.autocast("cpu", BF16), torch.no_grad():
        whole = block.attention(tokens)
        parts = torch.cat([block.attention(tokens[:1]), block.attention(tokens[1:])])
    assert torch.equal(whole, parts)
