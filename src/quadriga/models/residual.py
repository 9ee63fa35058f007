"""Blocks that start as the identity: the last map of each residual branch is zero."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def zero_branches(blocks: Iterable[nn.Module]) -> None:
    """Set the output projections of pre-norm blocks to zero, so that each returns its input.

    The first step changes the projections alone; the gradient reaches the rest of a branch from
    the second on (Chen et al., "Net2Net", 2016; Goyal et al., 2017, section 5.1, for the last
    scale of a branch).

    Args:
        blocks: Each with ``attention.output`` and ``mlp.output``, linear maps.

    Raises:
        TypeError: A block has no such maps.
    """
    for block in blocks:
        for branch in ("attention", "mlp"):
            output = getattr(getattr(block, branch, None), "output", None)
            if not isinstance(output, nn.Linear):
                raise TypeError(f"{type(block).__name__} has no linear {branch}.output")
            output.weight.zero_()
            if output.bias is not None:
                output.bias.zero_()
