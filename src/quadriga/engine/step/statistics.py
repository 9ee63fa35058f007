"""Groups of samples that share batch normalisation statistics, on any number of ranks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch.distributed as dist

from quadriga.contracts import Objective, Tallies
from quadriga.distributed.mesh import Ranks, SampleGroup
from quadriga.distributed.slots import sum_over
from quadriga.errors import UserError


def share_statistics(objective: Objective, shares: Sequence[Sequence[range]], ranks: Ranks) -> None:
    """Make the objective's batch normalisations use `Objective.statistics_group`.

    Args:
        objective: Changed in place.
        shares: For each rank the slots of each of its micro-batches.
        ranks: The ranks; each calls it.

    Raises:
        UserError: As `ranks_of_group`.
    """
    group = objective.statistics_group
    if group is None:
        return
    neighbours = ranks_of_group(group, shares)
    reduce = None
    if neighbours > 1:
        own, _ = dist.new_subgroups(neighbours)  # type: ignore[no-untyped-call]
        reduce = functools.partial(sum_over, group=SampleGroup(dist.get_rank(own), neighbours, own))
    for module in objective.modules():
        if isinstance(module, Tallies):
            module.set_groups(None if neighbours > 1 else group, reduce)


def ranks_of_group(group: int, shares: Sequence[Sequence[range]]) -> int:
    """Return how many consecutive ranks together hold a group of consecutive samples.

    Args:
        group: Samples per group.
        shares: For each rank the slots of each of its micro-batches.

    Raises:
        UserError: A group is neither part of a micro-batch nor the micro-batches of consecutive
            ranks.
    """
    sizes = {len(slots) for share in shares for slots in share}
    if all(size % group == 0 for size in sizes):
        return 1
    size = min(sizes)
    ranks = group // size
    if len(sizes) == 1 and group % size == 0 and len(shares) % ranks == 0:
        return ranks
    raise UserError(
        f"objective.statistics_group must divide every micro-batch, or be a multiple of it that "
        f"neighbouring ranks make up together, but is {group} for micro-batches of "
        f"{' and '.join(map(str, sorted(sizes)))} samples on {len(shares)} ranks; change it, "
        "train.batch_size or train.accumulate"
    )


def check_exchange(group: int, shares: Sequence[Sequence[range]]) -> None:
    """Check that samples which exchange their places are in one micro-batch.

    Args:
        group: `Objective.exchange_group`.
        shares: For each rank the slots of each of its micro-batches.

    Raises:
        UserError: They are not.
    """
    sizes = {len(slots) for share in shares for slots in share}
    if any(size % group for size in sizes):
        raise UserError(
            f"objective.statistics_group times objective.shuffled_groups must divide every "
            f"micro-batch, but is {group} for micro-batches of "
            f"{' and '.join(map(str, sorted(sizes)))} samples; change them, train.batch_size or "
            "train.accumulate"
        )
