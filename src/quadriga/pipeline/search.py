"""The best cut of a model: how many blocks each stage gets."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

StageCost = Callable[[int, int], float]
"""(stage, blocks) -> what it costs; more blocks never cost less."""


def best_cut(
    blocks: int, stages: int, cost: StageCost, most: Sequence[int] | None = None
) -> tuple[int, ...] | None:
    """Return the cut whose dearest stage is cheapest, and next to that the most even one.

    Blocks are alike, so a contiguous cut is a number of blocks per stage. Each next block goes to
    the stage that is cheapest with it. That is optimal: costs only grow, so whatever cut has a
    dearest stage of cost c gives no stage a block that costs more than c, and the rule takes all
    blocks at a cost of at most c before it takes a dearer one.

    Args:
        blocks: Blocks to give away; at least ``stages - 1``.
        stages: Stages; every one but the last has a block at least (the loss makes the last one).
        cost: What a stage costs.
        most: The most blocks of each stage.

    Returns:
        Blocks of each stage, None where the most are too few.
    """
    least = [1] * (stages - 1) + [0 if stages > 1 else blocks]
    most = [blocks] * stages if most is None else list(most)
    if sum(least) > blocks or any(low > high for low, high in zip(least, most, strict=True)):
        return None
    given = list(least)
    open_ = [(cost(s, given[s] + 1), s) for s in range(stages) if given[s] < most[s]]
    heapq.heapify(open_)
    for _ in range(blocks - sum(least)):
        if not open_:
            return None
        _, stage = heapq.heappop(open_)
        given[stage] += 1
        if given[stage] < most[stage]:
            heapq.heappush(open_, (cost(stage, given[stage] + 1), stage))
    return tuple(given)


def most_blocks(blocks: int, stages: int, fits: Callable[[int, int], bool]) -> list[int]:
    """Return the most blocks with which each stage fits, -1 where it does not even without one.

    Args:
        blocks: No stage has more.
        stages: Number of stages.
        fits: (stage, blocks) -> whether it fits; fewer blocks never need more.
    """
    found = []
    for stage in range(stages):
        low, high = -1, blocks
        while low < high:
            middle = (low + high + 1) // 2
            if fits(stage, middle):
                low = middle
            else:
                high = middle - 1
        found.append(low)
    return found
