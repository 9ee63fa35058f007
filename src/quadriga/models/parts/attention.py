"""Scaled dot-product attention (Vaswani et al., 2017, equation 1), by the path that is fast here.

torch's fused kernel is the choice on a GPU and in float32. On the CPU its backward pass in bfloat16
takes up to six times that of the formula, and three times that in float32, on processors that
multiply bfloat16 (``benchmarks/attention_paths.py``; the numbers are in ``docs/measurements.md``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

AttentionPath = Literal["fused", "fused in float32", "formula"]

FORMULA_LENGTH = 10
"""Longest sequence of the formula, in sizes of a head. It keeps a score for every query and key:
at this length ten values where the fused kernel keeps four (query, key, value and result)."""
FLOAT32_LENGTH = 512
"""Shorter ones are faster fused in float32 than fused in bfloat16."""


def attention_path(device_type: str, dtype: torch.dtype, length: int, size: int) -> AttentionPath:
    """Return how attention is computed: a fixed rule, made of recorded measurements.

    It does not know the number of samples or heads, so that a micro-batch is computed in the same
    way however a step is divided, nor the processor, so that a run goes on elsewhere as it began.

    Args:
        device_type: ``cpu``, ``cuda`` or another of torch's.
        dtype: That of the products.
        length: Keys of a sequence.
        size: Features of a head.
    """
    if device_type != "cpu" or dtype != torch.bfloat16:
        return "fused"
    if length <= FORMULA_LENGTH * size:
        return "formula"
    return "fused in float32" if length < FLOAT32_LENGTH else "fused"


def attention(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch heads keys size"],
    value: Float[Tensor, "batch heads keys size"],
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "batch heads queries size"]:
    """Return each query's mean of the values, weighted by the softmax of its scores.

    Args:
        query: One vector per query, as the key and the value of the dtype of the products.
        key: One vector per key.
        value: One vector per key.
        mask: Broadcastable to (batch, heads, queries, keys). Boolean: True where a query may attend
            to a key, of which each has one at least; float: added to the scores.
    """
    if has_torch_function((query,)):  # whoever counts operations gets the fused one
        fused: Tensor = handle_torch_function(
            functional.scaled_dot_product_attention, (query,), query, key, value, attn_mask=mask
        )
        return fused
    path = attention_path(query.device.type, query.dtype, key.shape[-2], key.shape[-1])
    if path == "formula":
        return formula(query, key, value, mask)
    if path == "fused":
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    # Autocast would turn them into bfloat16 again.
    with torch.autocast(query.device.type, enabled=False):
        mixed = functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=mask
        )
    return mixed.to(query.dtype)


def formula(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch heads keys size"],
    value: Float[Tensor, "batch heads keys size"],
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    drop: Callable[[Tensor], Tensor] = lambda weights: weights,
) -> Float[Tensor, "batch heads queries size"]:
    """Return what `attention` does by two matrix products and a softmax.

    Args:
        query: As for `attention`.
        key: As for `attention`.
        value: As for `attention`.
        mask: As for `attention`.
        drop: Dropout of the weights.
    """
    scores = (query * (1.0 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    if mask is not None:
        is_boolean = mask.dtype == torch.bool
        scores = scores.masked_fill_(~mask, -math.inf) if is_boolean else scores + mask
    mixed: Tensor = drop(scores.softmax(dim=-1)).to(value.dtype) @ value
    return mixed
