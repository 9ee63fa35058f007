"""Sums and counts of one step, reduced over the ranks in one collective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
import torch.distributed as dist
from torch import Tensor

from quadriga.contracts import LossOutput, Objective
from quadriga.distributed.collectives import all_reduce_sum
from quadriga.distributed.environment import DistEnv


class Reduced(NamedTuple):
    """The reduced values of a step, equal on all ranks."""

    metrics: dict[str, Tensor]
    """Name -> float64 scalar, sum divided by count; includes ``loss``."""
    targets: Tensor
    """float64 scalar, the number of targets of the step over all parts of the loss."""
    asked_to_stop: Tensor
    """float64 scalar, the number of ranks that received a stop signal."""
    asked_to_save: Tensor
    """float64 scalar, the number of ranks that ask for a checkpoint."""
    more: tuple[Tensor, ...] = ()
    """float64 scalars, the sums over all ranks of the further values."""


@final
class MetricSums:
    """Accumulates sums and counts of one step: the parts of the loss, then the metrics."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        """Start at zero for the terms and metrics that `objective` names."""
        self._terms = objective.term_names
        self._names = (*self._terms, *objective.metric_names)
        self._device = device
        # Weights are reduced as sum and count too, because a rank may lack a term and its weight.
        self._weighted = self._terms if self._terms != ("loss",) else ()
        columns = (*self._names, *map(_weight_of, self._weighted))
        self._sums: dict[str, list[Tensor]] = {name: [] for name in columns}
        self._counts: dict[str, list[Tensor]] = {name: [] for name in columns}

    def add(self, output: LossOutput) -> None:
        """Add one micro-batch."""
        one = torch.ones((), device=self._device)
        for name, term in output.terms.items():
            self._put(name, term.total, one if term.targets is None else term.targets)
            if self._weighted:
                self._put(_weight_of(name), one * term.weight, one)
        for name, (total, count) in output.metrics.items():
            self._put(name, total, count)

    def _put(self, name: str, total: Tensor, count: Tensor) -> None:
        self._sums[name].append(total.detach().to(torch.float64))
        self._counts[name].append(count.detach().to(torch.float64))

    def reduce(
        self,
        env: DistEnv,
        asked_to_stop: bool,
        asked_to_save: bool = False,
        more: Sequence[Tensor] = (),
        group: dist.ProcessGroup | None = None,
    ) -> Reduced:
        """Sum over all ranks and divide; every rank calls it.

        A metric that no micro-batch reported is 0 / 0 = NaN, and is not logged.

        Args:
            env: This process among the run's.
            asked_to_stop: Whether this rank received a stop signal; reduced in the same
                collective, so that all ranks stop after the same step.
            asked_to_save: Whether this rank asks for a checkpoint; likewise.
            more: Further scalars to sum over the ranks.
            group: A group of all ranks; the default group if None.
        """
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        flags = torch.tensor(
            [asked_to_stop, asked_to_save], dtype=torch.float64, device=self._device
        )
        table = torch.stack(
            [
                torch.stack([*(sum(part[n], zero) for n in self._sums), flag])
                for part, flag in zip((self._sums, self._counts), flags, strict=True)
            ]
        )
        further = [value.detach().to(torch.float64).reshape(1) for value in more]
        reduced = all_reduce_sum(torch.cat([table.flatten(), *further]), env, group)
        sums, counts = reduced[: table.numel()].view_as(table)
        every = dict(zip(self._sums, (sums[:-1] / counts[:-1]).unbind(), strict=True))
        means = {name: every[name] for name in self._names}
        targets = counts[: len(self._terms)]
        if self._weighted:
            parts = torch.stack([means[n] * every[_weight_of(n)] for n in self._weighted])
            # A part without targets is no error: it adds nothing to the loss.
            means["loss"] = torch.where(targets > 0, parts, 0.0).sum()
        more_sums = reduced[table.numel() :].unbind()
        return Reduced(means, targets.sum(), sums[-1], counts[-1], more_sums)


def _weight_of(term: str) -> str:
    return f"weight of {term}"
