"""Which tokens are hidden, and by what."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quadriga.data.text.sentence_pairs import choose_tokens, choose_words, hide
from quadriga.randomness import Stream, bits_numpy, fold

KEYS = st.integers(-(2**63), 2**63 - 1)
SHARES = st.floats(0.01, 0.99)


def near(hits: int, trials: int, probability: float) -> bool:
    """Whether a count is within five standard deviations of what is expected."""
    return abs(hits - trials * probability) < 5 * math.sqrt(trials * probability)


@given(KEYS, st.integers(0, 50))
def test_vector_draws_are_those_of_a_stream(key: int, count: int) -> None:
    stream = Stream(key)
    assert [(draw * 7) >> 64 for draw in bits_numpy(key, count).tolist()] == [
        stream.integer(7) for _ in range(count)
    ]


@given(st.integers(1, 200), SHARES, st.none() | st.integers(1, 30), KEYS)
def test_chosen_tokens(count: int, probability: float, limit: int | None, key: int) -> None:
    chosen = choose_tokens(count, probability, limit, key)
    assert 1 <= len(chosen) <= min(count, limit or count)
    assert np.array_equal(chosen, np.unique(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < count
    free = choose_tokens(count, probability, None, key)
    assert set(chosen) <= set(free)
    assert len(chosen) == min(len(free), limit or count)


@given(
    st.lists(st.booleans(), min_size=1, max_size=120), SHARES, KEYS, st.none() | st.integers(1, 30)
)
def test_chosen_words(starts: list[bool], probability: float, key: int, limit: int | None) -> None:
    flags = np.array(starts)
    flags[0] = True
    chosen = choose_words(flags, probability, limit, key)
    assert 1 <= len(chosen) <= min(len(starts), limit or len(starts))
    assert np.array_equal(chosen, np.unique(chosen))
    word = np.cumsum(flags)
    sizes = np.bincount(word)[1:]
    if limit is None or sizes.min() <= limit:
        whole = np.flatnonzero(np.isin(word, np.unique(word[chosen])))
        if limit is None or len(whole) <= limit:
            assert np.array_equal(chosen, whole)
        else:  # none of the words that were drawn fits
            assert len(chosen) == limit
            assert len(np.unique(word[chosen])) == 1


@given(st.integers(1, 100), SHARES, KEYS)
def test_words_of_one_token_are_chosen_as_tokens_are(count: int, p: float, key: int) -> None:
    assert np.array_equal(
        choose_words(np.ones(count, bool), p, None, key), choose_tokens(count, p, None, key)
    )


def test_shares_of_what_is_hidden_and_by_what() -> None:
    chosen = sum(len(choose_tokens(100, 0.15, None, fold(1, k))) for k in range(2000))
    assert near(chosen, 200_000, 0.15)
    originals = np.full(1000, 5)
    shown = np.concatenate([hide(originals, 4, 1000, fold(2, k)) for k in range(200)])
    assert near(int((shown == 4).sum()), len(shown), 0.8 + 0.1 / 1000)
    assert near(int((shown == 5).sum()), len(shown), 0.1 + 0.1 / 1000)
    others = shown[(shown != 4) & (shown != 5)]
    assert near(len(others), len(shown), 0.1 * 998 / 1000)
    assert others.min() >= 0
    assert others.max() < 1000
    assert len(np.unique(others)) == 998
    assert near(int((others < 500).sum()), len(others), 498 / 998)


def test_whole_words_are_chosen_at_the_same_rate() -> None:
    starts = np.tile([True, False, True, False, False], 20)
    chosen = sum(len(choose_words(starts, 0.15, None, fold(3, k))) for k in range(2000))
    # Words of two and three tokens: the deviation of a token's count is larger by at most sqrt(3).
    assert abs(chosen - 30_000) < 5 * math.sqrt(3 * 30_000)
