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
    """Return (full name, block) for the members of every list named ``blocks``.

    The name is a convention of this project's models: ``encoder.blocks.0``. Layer-wise decay and
    pipeline stages use it too. A stage holds its blocks in an `nn.ModuleDict` under their numbers
    in the whole model.
    """
    return [
        (f"{name}.{number}", block)
        for name, module in objective.named_modules()
        if isinstance(module, nn.ModuleList | nn.ModuleDict) and name.rpartition(".")[2] == "blocks"
        for number, block in module.named_children()
    ]


PROGRAMS = 64
"""Limit of compiled versions of one block's code; each input shape needs one."""


def check_compile(device: torch.device) -> None:
    """Check that this machine can compile for a device.

    Raises:
        UserError: A compiler is missing.
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
    """Compile every block of an objective at its first call.

    Blocks of the same shape share compiled code, so compile time does not grow with the depth.
    """
    # Images have few shapes (encoder, decoder, a smaller last micro-batch), and a program for each
    # is worthwhile; torch's default limit is eight.
    torch._dynamo.config.recompile_limit = PROGRAMS
    for _, block in blocks_of(objective):
        # None: the second shape compiles a program for all shapes, since texts have many.
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
"""Operations whose results the selective mode keeps: expensive to compute, cheap to keep."""


def apply_recompute(objective: nn.Module, mode: Mode) -> None:
    """Make every block of an objective recompute its activations in the backward pass.

    Chen et al., arXiv:1604.06174. Random draws in a block are keyed, so the recomputation draws
    the same values and no generator state is kept.

    Args:
        objective: Changed in place; parameter names do not change.
        mode: "none" changes nothing; "selective" keeps the results of matrix products and
            attention; "full" keeps only a block's input.
    """
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for _, block in blocks_of(objective):
        # Set on the instance, so that the class, the names and the hooks do not change.
        block.forward = _recomputed(block.forward, options)


def _recomputed(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    # A function, because torch.compile does not compile a partial of `checkpoint`.
    def recomputed(*arguments: Any, **named: Any) -> Any:
        return checkpoint(forward, *arguments, **named, **options)

    return recomputed


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    kept = operation in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
