"""The keyed generators: pure, the same in Python, numpy and torch, and well spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import refuses
from quadriga import randomness
from quadriga.randomness import Stream, fold, fold_numpy, mix, shuffled, uniform_rows

MASK = (1 << 64) - 1


def layer_draws(salt, count):
    source = randomness.layer_generator(salt, torch.device("cpu"))
    return torch.empty(count).uniform_(generator=source)


def test_mix_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 1234567 (Vigna's reference implementation).
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    gamma = 0x9E3779B97F4A7C15
    assert [mix((1234567 + (i + 1) * gamma) & MASK) for i in range(3)] == expected


@given(st.integers(0, MASK), st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20))
def test_the_vector_form_of_fold_equals_fold(key: int, values: list[int]) -> None:
    folded = fold_numpy(fold(key), np.array(values, dtype=np.int64))
    assert [int(v) & MASK for v in folded] == [fold(key, value) for value in values]


def test_fold_depends_on_order_and_on_every_part() -> None:
    keys = [fold(1, 2), fold(2, 1), fold(1, "a"), fold("a", 1), fold(1), fold(1, 2, 0), fold("1")]
    assert len(set(keys)) == len(keys)


@settings(max_examples=60)
@given(st.integers(1, 3000), st.integers(0, MASK))
def test_shuffled_is_a_permutation(size: int, key: int) -> None:
    order = shuffled(np.arange(size), size, key)
    assert sorted(order.tolist()) == list(range(size))


@given(st.integers(1, 10**12), st.integers(0, MASK), st.data())
def test_shuffled_is_addressed_by_position(size: int, key: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, size - 1))
    alone = shuffled(np.array([position]), size, key)
    among = shuffled(np.array([0, position, size - 1]), size, key)
    assert 0 <= alone[0] < size
    assert alone[0] == among[1]


def test_shuffled_spreads() -> None:
    orders = np.stack([shuffled(np.arange(50), 50, fold("order", k)) for k in range(2000)])
    # Each element at each place about 40 times: chi-square with 49 degrees of freedom per place.
    for place in (0, 17, 49):
        counts = np.bincount(orders[:, place], minlength=50)
        assert ((counts - 40) ** 2 / 40).sum() < 100


def test_uniform_rows_follow_the_key_alone() -> None:
    keys = torch.tensor([3, -5, 2**62, 3])
    rows = uniform_rows(keys, fold("mask"), 1000)
    assert torch.equal(rows[0], rows[3])
    assert torch.equal(rows[1:2], uniform_rows(keys[1:2], fold("mask"), 1000))
    assert not torch.equal(rows[0], uniform_rows(keys, fold("flip"), 1000)[0])
    assert rows.min() >= 0
    assert rows.max() < 1
    assert rows[:3].mean().item() == pytest.approx(0.5, abs=0.02)
    assert rows[:3].var().item() == pytest.approx(1 / 12, abs=0.005)


def test_passes_tell_the_draws_of_a_sample_apart() -> None:
    keys = torch.tensor([3, -5, 2**62])
    passes = [randomness.pass_keys(keys, name) for name in ("encoder", "view 1", "view 2")]
    assert torch.equal(randomness.pass_keys(keys[1:], "encoder"), passes[0][1:])
    assert len(set(torch.cat([keys, *passes]).tolist())) == 12


def test_uniform_rows_equal_the_scalar_formula() -> None:
    key, salt = fold("sample", 7), fold("mask")
    signed = key - (1 << 64) if key >> 63 else key
    rows = uniform_rows(torch.tensor([signed]), salt, 3)[0]
    base = mix(key ^ salt)
    expected = [(mix((base + i * 0x9E3779B97F4A7C15) & MASK) >> 40) * 2.0**-24 for i in (1, 2, 3)]
    assert rows.tolist() == expected


@given(st.integers(0, MASK), st.integers(0, 2**40), st.integers(0, 50))
def test_an_element_has_the_draw_of_its_number(key: int, first: int, count: int) -> None:
    drawn = randomness.element_uniform(key, first, count, torch.device("cpu"))
    bits = [mix((key + (first + i + 1) * 0x9E3779B97F4A7C15) & MASK) for i in range(count)]
    assert drawn.tolist() == [((b >> 12) + 0.5) * 2.0**-52 for b in bits]


@given(st.integers(0, MASK), st.integers(1, 10**9))
def test_stream_integers_stay_below_their_bound(key: int, bound: int) -> None:
    stream = Stream(key)
    assert all(0 <= stream.integer(bound) < bound for _ in range(20))


def test_stream_moments() -> None:
    stream = Stream(fold("moments"))
    normals = np.array([stream.normal(2.0, 3.0) for _ in range(20_000)])
    assert normals.mean() == pytest.approx(2.0, abs=0.1)
    assert normals.std() == pytest.approx(3.0, abs=0.1)
    assert {stream.choice("abc") for _ in range(50)} == set("abc")
    with refuses("bound", "1", error=ValueError):
        stream.integer(0)


def test_layers_draw_inside_a_micro_batch_only() -> None:
    with refuses("randomness.micro_batch", error=RuntimeError):
        layer_draws(fold(1), 4)
    with randomness.micro_batch(0, 1, 2, 3):
        first = layer_draws(fold(1), 4)
        other = layer_draws(fold(2), 4)
    with randomness.micro_batch(0, 1, 2, 3):
        again = layer_draws(fold(1), 4)
    with randomness.micro_batch(0, 2, 2, 3):
        next_step = layer_draws(fold(1), 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, next_step)


def test_scopes_nest() -> None:
    with randomness.micro_batch(0, 0, 0, 0):
        outer = layer_draws(1, 3)
        with randomness.micro_batch(0, 1, 0, 0):
            inner = layer_draws(1, 3)
        assert torch.equal(outer, layer_draws(1, 3))
    assert not torch.equal(outer, inner)
