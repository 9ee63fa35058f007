"""Which tokens are hidden, and by what (Devlin et al., "BERT", 2019, section 3.1 and A.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quadriga.randomness import bits_numpy, fold

_CHOOSE, _REPLACE = fold("mask"), fold("replacement of the masked")
_EIGHTY, _NINETY = int(0.8 * 2**32), int(0.9 * 2**32)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Ids = npt.NDArray[Any]


def choose_tokens(
    count: int, probability: float, limit: int | None, key: int
) -> npt.NDArray[np.int64]:
    """Choose each of `count` tokens with the same probability, at least one of them.

    Args:
        count: Number of tokens, at least 1.
        probability: Of each, independent of the others.
        limit: Most that are chosen: those with the lowest draws; None for no limit.
        key: The sample's key.

    Returns:
        int64 places, ascending.
    """
    draws = bits_numpy(fold(key, _CHOOSE), count)
    chosen = np.flatnonzero(draws < _bound(probability))
    if not chosen.size:
        return np.array([draws.argmin()])
    if limit is not None and chosen.size > limit:
        lowest = draws[chosen].argpartition(limit - 1)[:limit]
        chosen = np.sort(chosen[lowest])
    return chosen


def choose_words(
    starts: npt.NDArray[np.bool_], probability: float, limit: int | None, key: int
) -> npt.NDArray[np.int64]:
    """Choose each word with the same probability, all its tokens with it, at least one word.

    Where no word fits into the limit, as many tokens of the one with the lowest draw are chosen.

    Args:
        starts: bool (count,): whether a token starts a word; the first does in any case.
        probability: Of each word, and so of each token.
        limit: Most tokens that are chosen: words are taken by ascending draw, and those that do
            not fit are left out; None for no limit.
        key: The sample's key.

    Returns:
        int64 places of tokens, ascending.
    """
    word = np.cumsum(starts, dtype=np.int64) - int(starts[0])
    sizes = np.bincount(word)
    draws = bits_numpy(fold(key, _CHOOSE), len(sizes))
    taken = draws < _bound(probability)
    if not taken.any():
        fitting = sizes <= (len(starts) if limit is None else limit)
        if fitting.any():
            draws = np.where(fitting, draws, np.uint64(2**64 - 1))
        taken[draws.argmin()] = True
    if limit is not None and sizes[taken].sum() > limit:
        order = np.flatnonzero(taken)
        order = order[draws[order].argsort()]
        taken[:] = False
        room = limit
        for number in order.tolist():
            if sizes[number] <= room:
                taken[number] = True
                room -= int(sizes[number])
        if room == limit:
            return np.flatnonzero(word == order[0])[:limit]
    return np.flatnonzero(taken[word])


def _bound(probability: float) -> np.uint64:
    return np.uint64(min(int(probability * 2**64), 2**64 - 1))


def hide(originals: Ids, mask: int, vocabulary_size: int, key: int) -> npt.NDArray[np.int64]:
    """Return what stands in the chosen places: 80 % ``[MASK]``, 10 % any token, 10 % as it was.

    Args:
        originals: The ids that were chosen.
        mask: The id of ``[MASK]``.
        vocabulary_size: A random token is drawn from this many.
        key: The sample's key.

    Returns:
        int64 ids.
    """
    draws = bits_numpy(fold(key, _REPLACE), len(originals))
    action = (draws >> _HALF).astype(np.int64)
    random = (((draws & _LOW) * np.uint64(vocabulary_size)) >> _HALF).astype(np.int64)
    return np.where(action < _EIGHTY, mask, np.where(action < _NINETY, random, originals))
