"""Top-1 and top-5 accuracy, and the table of an encoder beside its random start."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def reported_ranks(classes: int) -> tuple[int, ...]:
    """Return which top-k are reported: top-5 only above five classes, else it is always full."""
    return (1, 5) if classes > 5 else (1,)


def top_hits(
    scores: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
    ranks: tuple[int, ...],
) -> Int[Tensor, " ranks"]:
    """Count the samples whose label is among the k highest scores.

    A label that scores -inf or NaN is never counted: nothing spoke for it.

    Args:
        scores: One score per class, higher is better.
        labels: The right classes.
        ranks: The values of k, each at most the number of classes.

    Returns:
        int64 (ranks,), one count for each k.
    """
    order = scores.topk(max(ranks), dim=1).indices
    spoken = scores.gather(1, labels[:, None]).isfinite()
    right = (order == labels[:, None]) & spoken
    return torch.stack([right[:, :rank].sum() for rank in ranks])


def percentages(
    hits: Int[Tensor, " ranks"], total: int, ranks: tuple[int, ...]
) -> dict[str, float]:
    """Return ``{"top1": ..., "top5": ...}`` in percent.

    Args:
        hits: Counts from `top_hits`.
        total: Number of samples.
        ranks: The values of k.
    """
    return {
        f"top{rank}": 100.0 * count / total
        for rank, count in zip(ranks, hits.tolist(), strict=True)
    }


def beside_random(trained: dict[str, float], random: dict[str, float]) -> dict[str, float]:
    """Return the numbers of the trained encoder, then the random one's as ``<name>_random``."""
    return {**trained, **{f"{name}_random": value for name, value in random.items()}}
