"""Teachers: copies of a student's modules that follow its weights and get no gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from quadriga.contracts import Progress
from quadriga.distributed.collectives import local_part
from quadriga.models.parts.batch_norm import BatchNorm
from quadriga.models.parts.transformer import Dropout, DropPath

Module = TypeVar("Module", bound=nn.Module)


def teacher_of(student: Module) -> Module:
    """Return a copy of `student` without gradients, dropout and drop path, in any mode.

    In training mode its batch normalisation uses batch statistics like the student's. Its tally is
    not applied; its running statistics follow the student's, as its weights do.

    Args:
        student: Not sharded yet; its values may be undefined (see `start`).
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drops = False
        elif isinstance(module, Dropout):
            module.rate = 0.0
        elif isinstance(module, BatchNorm):
            module.keeps_tally = False
    return teacher


@torch.no_grad()
def start(teacher: nn.Module, student: nn.Module) -> None:
    """Copy every parameter and buffer from the student; each rank copies its shards."""
    for kept, given in _pairs(teacher, student):
        kept.copy_(given)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Set ``teacher = momentum * teacher + (1 - momentum) * student``; each rank its shards.

    Parameters and floating-point buffers are averaged, other buffers copied.

    Args:
        teacher: The result of `teacher_of` for `student`.
        student: The modules to follow.
        momentum: From 0 to 1.
    """
    pairs = list(_pairs(teacher, student))
    averaged = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([t for t, _ in averaged], [s for _, s in averaged], 1.0 - momentum)
    for kept, given in pairs:
        if not kept.is_floating_point():
            kept.copy_(given)


def rising(start: float, progress: Progress) -> float:
    """Return a momentum that rises to 1 along a half cosine.

    At step t of T: ``1 - (1 - start) (1 + cos(pi t / T)) / 2`` (Grill et al., 2020,
    arXiv:2006.07733, section 3.2).
    """
    over = progress.step / max(1, progress.total_steps)
    return 1.0 - (1.0 - start) * (1.0 + math.cos(math.pi * over)) / 2.0


def warmed_up(first: float, last: float, epochs: float, progress: Progress) -> float:
    """Return a temperature that rises linearly from `first` to `last` over `epochs`."""
    if progress.epoch >= epochs:
        return last
    return first + (last - first) * progress.epoch / epochs


def _pairs(teacher: nn.Module, student: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    for tensors in (nn.Module.parameters, nn.Module.buffers):
        for kept, given in zip(tensors(teacher), tensors(student), strict=True):
            yield local_part(kept), local_part(given)
