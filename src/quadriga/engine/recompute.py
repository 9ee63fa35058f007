"""Activation checkpointing: blocks whose activations are computed anew in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from quadriga.engine.step.blocks import blocks_of

Mode = Literal["none", "selective", "full"]

_KEPT = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""Operations whose results the selective mode keeps: they are dear to compute, cheap to keep."""


def apply_recompute(objective: nn.Module, mode: Mode) -> None:
    """Have every block of an objective recompute its activations in the backward pass.

    Chen et al., arXiv:1604.06174. What is random in a block is keyed, so the second computation
    draws what the first did and no generator's state is kept.

    Args:
        objective: Changed in place; its names stay as they are.
        mode: "none" changes nothing; "selective" keeps the results of matrix products and
            attention; "full" keeps nothing but a block's input.
    """
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for _, block in blocks_of(objective):
        # An attribute of the instance: the class, the names and the hooks stay what they are.
        block.forward = _recomputed(block.forward, options)


def _recomputed(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    # A function of its own: torch.compile would pass over a partial of `checkpoint`.
    def recomputed(*arguments: Any, **named: Any) -> Any:
        return checkpoint(forward, *arguments, **named, **options)

    return recomputed


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    kept = operation in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
