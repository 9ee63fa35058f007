"""torch.compile, block by block."""

from __future__ import annotations

import importlib.util
import shutil

import torch
from torch import nn

from quadriga.engine.step.blocks import blocks_of
from quadriga.errors import UserError

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
