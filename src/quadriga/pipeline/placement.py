"""What the network makes of a placement: ranks stage by stage, the copies of a stage together."""

from __future__ import annotations

import math
from typing import final

from quadriga.pipeline.planner.profile import Link, Network


@final
class Placement:
    """So many stages of so many copies on a network: rank ``stage * width + copy``."""

    def __init__(self, network: Network, width: int, depth: int) -> None:
        """Place `depth` stages of `width` copies."""
        self._network, self.width, self.depth = network, width, depth
        ranks = width * depth
        self._per_node = min(network.ranks_per_node or ranks, ranks)
        self._leaving = self._most_that_leave()

    def _node(self, rank: int) -> int:
        return rank // self._per_node

    def _most_that_leave(self) -> int:
        """Return the most ranks of one node that send activations to another node."""
        leaving: dict[int, int] = {}
        for rank in range(self.width * (self.depth - 1)):
            if self._node(rank) != self._node(rank + self.width):
                leaving[self._node(rank)] = leaving.get(self._node(rank), 0) + 1
        return max(leaving.values(), default=0)

    def transfer_seconds(self, stage: int, size: float) -> float:
        """Return how long a message from a stage to the next one takes.

        Args:
            stage: The sender.
            size: Bytes.
        """
        first = stage * self.width
        crosses = any(
            self._node(rank) != self._node(rank + self.width)
            for rank in range(first, first + self.width)
        )
        if not crosses:
            return self._network.within.seconds(size)
        return self._network.between.seconds(size * max(1, self._leaving))

    def _spans(self, stage: int) -> range:
        first = stage * self.width
        return range(self._node(first), self._node(first + self.width - 1) + 1)

    def reduce_seconds(self, stage: int, size: float) -> float:
        """Return how long the sum of a stage's gradients over its copies takes.

        A ring sends ``2 (w - 1) / w`` of the bytes through each rank (Patarasuk and Yuan, 2009).
        Rings that leave a node share what joins it to the others.

        Args:
            stage: The stage.
            size: Bytes of its gradients.
        """
        width = self.width
        if width == 1:
            return 0.0
        link, sharing = self._network.within, 1
        nodes = self._spans(stage)
        if len(nodes) > 1:
            link = self._network.between
            spans = [self._spans(s) for s in range(self.depth)]
            sharing = max(sum(node in s for s in spans if len(s) > 1) for node in nodes)
        return _ring(link, width, size * sharing)

    def tie_seconds(self, size: float) -> float:
        """Return how long the sum of tied gradients of the first and the last stage takes.

        Args:
            size: Bytes that both hold.
        """
        if self.depth == 1 or not size:
            return 0.0
        last = (self.depth - 1) * self.width
        away = self._node(0) != self._node(last)
        link = self._network.between if away else self._network.within
        return _ring(link, 2, size * (min(self.width, self._per_node) if away else 1))


def _ring(link: Link, ranks: int, size: float) -> float:
    waits = 2 * math.ceil(math.log2(ranks)) * link.latency
    return waits + 2 * (ranks - 1) / ranks * size / link.bandwidth
