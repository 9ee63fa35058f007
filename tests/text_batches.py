"""Batches of made-up text, as the contracts describe them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quadriga import randomness
from quadriga.contracts import Batch


def text_batch(
    lengths: Sequence[int],
    grid: int | None = None,
    vocabulary: int = 60,
    covering: bool = False,
    masked: float = 0.3,
    seed: int = 0,
) -> Batch:
    """Return sequences of the given lengths with some words hidden.

    Args:
        lengths: Real tokens of each sequence.
        grid: Length of the padded sequences; None: the longest one's.
        vocabulary: Number of words; 0 is the padding and 1 the mark of a hidden word.
        covering: Whether `tokens` are all places of the grid, as with views of a fixed shape.
        masked: Share of the words that is hidden.
        seed: Other numbers, other words.
    """
    source = randomness.generator(seed, "text batch")
    real = torch.tensor(lengths, dtype=torch.int64)
    columns = torch.arange(max(lengths, default=1) if grid is None else grid)
    is_real = columns < real[:, None]
    ids = torch.randint(2, vocabulary, is_real.shape, generator=source) * is_real
    segments = ((columns > real[:, None] // 2) & is_real).long()
    hidden = (torch.rand(is_real.shape, generator=source) < masked) & is_real
    targets = ids[hidden]
    ids[hidden] = 1
    tokens = torch.arange(ids.numel()) if covering else is_real.view(-1).nonzero()[:, 0]
    number = torch.arange(len(lengths))
    return {
        "ids": ids,
        "segments": segments,
        "lengths": real,
        "tokens": tokens,
        "masked": hidden.view(-1)[tokens].nonzero()[:, 0],
        "targets": targets,
        "is_random": number % 2,
        "index": number,
        "key": number,
    }
