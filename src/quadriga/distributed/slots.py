"""Positions of a step's samples on the ranks, and the differentiable gather and sum over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from quadriga.distributed.mesh import ALONE, SampleGroup


@final
class Slots:
    """Positions of this rank's rows among the rows of a step.

    A slot is one sample's position in the step. Each rank has the slots of all ranks, so a gather
    communicates nothing but the rows. Shares may be uneven or empty.
    """

    def __init__(self, group: SampleGroup, shares: Sequence[Sequence[int]]) -> None:
        """Store the slots of each rank of `group`.

        Args:
            group: The ranks.
            shares: For each rank the slots of its rows, in order; together they are a permutation
                of 0, 1, ..., rows of the step - 1.
        """
        self.group = group
        self.counts = tuple(len(share) for share in shares)
        """Rows of each rank."""
        self.total = sum(self.counts)
        """Rows of the step."""
        self.own = torch.tensor(list(shares[group.rank]), dtype=torch.int64)
        """int64 (rows,): the slots of this rank's rows, on the CPU."""
        slots = [slot for share in shares for slot in share]
        flat = torch.tensor(slots, dtype=torch.int64)
        # Row s of the step is row order[s] of the concatenation over the ranks.
        self._order = torch.empty_like(flat).scatter_(0, flat, torch.arange(self.total))
        self._inverse = flat
        self._is_ordered = slots == list(range(self.total))

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks in slot order; each rank of the group calls it.

        The backward pass is the transpose: the gradient of this rank's rows is the sum over all
        ranks of their gradients with respect to these rows.

        Args:
            rows: (rows of this rank, *any), of any dtype that the backend supports.

        Returns:
            (rows of the step, *any).
        """
        if self.group.size > 1:
            rows = _Gather.apply(rows, self)  # type: ignore[no-untyped-call]
        return rows if self._is_ordered else rows[self._order.to(rows.device)]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over the ranks; the gradient is summed likewise."""
        return sum_over(values, self.group)

    def gather_ranks(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, concatenated in rank order, without a graph."""
        if self.group.size == 1:
            return rows
        most = max(self.counts)
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded, group=self.group.group)
        return torch.cat([part[:n] for part, n in zip(parts, self.counts, strict=True)])

    def own_part(self, summed: Tensor) -> Tensor:
        """Return the part of (rows of all ranks, *any) that belongs to this rank."""
        first = sum(self.counts[: self.group.rank])
        return summed[first : first + self.counts[self.group.rank]]


def sum_over(values: Tensor, group: SampleGroup) -> Tensor:
    """Return the sum of `values` over the ranks of a group; the gradient is summed likewise."""
    if group.size == 1:
        return values
    summed: Tensor = _Sum.apply(values, group)  # type: ignore[no-untyped-call]
    return summed


class _Gather(torch.autograd.Function):
    """All-gather of rows whose backward pass sums the gradients over the ranks."""

    @staticmethod
    def forward(context: Any, rows: Tensor, slots: Slots) -> Tensor:
        context.slots = slots
        return slots.gather_ranks(rows.detach())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed, group=context.slots.group.group)
        return context.slots.own_part(summed), None


class _Sum(torch.autograd.Function):
    """All-reduce whose backward pass is an all-reduce.

    Differentiating through torch's in-place all-reduce gives 1 / ranks of this gradient.
    """

    @staticmethod
    def forward(context: Any, values: Tensor, group: SampleGroup) -> Tensor:
        context.group = group
        summed = values.detach().clone()
        dist.all_reduce(summed, group=group.group)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed, group=context.group.group)
        return summed, None


def alone(rows: int) -> Slots:
    """Return the slots of a rank that has all `rows` of a step."""
    return Slots(ALONE, [range(rows)])
