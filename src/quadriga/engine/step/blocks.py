"""The blocks of an objective: the unit of sharding, recomputation and compilation."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from quadriga.errors import UserError


def blocks_of(objective: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the members of every list called ``blocks``, by their full names.

    The name is the convention of this project's models: ``encoder.blocks.0``. Layer-wise decay
    counts by it, and stages are cut by it. A stage's blocks are in an `nn.ModuleDict` under their
    numbers in the whole model.
    """
    return [
        (f"{name}.{number}", block)
        for name, module in objective.named_modules()
        if isinstance(module, nn.ModuleList | nn.ModuleDict) and name.rpartition(".")[2] == "blocks"
        for number, block in module.named_children()
    ]


PROGRAMS = 64
"""Compiled versions of one block's code that may exist at once: one for each shape it meets."""


def check_compile(device: torch.device) -> None:
    """Check that this machine can compile.

    Raises:
        UserError: It lacks a compiler.
    """
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError(
            "train.compile=true needs a C++ compiler on the CPU, but none of c++, g++ and clang++ "
            "is found; install one or set train.compile=false"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(
            "train.compile=true needs triton on a GPU, but it is not installed; pip install "
            "triton, or set train.compile=false"
        )


def compile_blocks(objective: nn.Module) -> None:
    """Compile every block of an objective, when it is first called.

    Blocks of one shape share their code, so the time to compile does not grow with the depth.
    """
    # Shapes of images are few (encoder, decoder, a smaller last micro-batch) and each is worth a
    # program of its own; the default gives up after eight.
    torch._dynamo.config.recompile_limit = PROGRAMS
    for _, block in blocks_of(objective):
        # None: the second shape makes one program for all, as texts need, that have many.
        block.compile(dynamic=None if getattr(block, "has_many_shapes", False) else False)


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
