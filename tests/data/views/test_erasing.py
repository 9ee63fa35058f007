"""Random erasing against a loop over samples, and its distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quadriga.data.views.erasing import Boxes, Erasing, boxes, erase, inside, noise
from quadriga.randomness import fold, uniform_rows

HOW = Erasing(0.25, "pixel", 1, (0.02, 1 / 3), (0.3, 1 / 0.3))


def keys(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63, count))


def images(count, height, width):
    """Values that no noise has."""
    return torch.arange(count * 3 * height * width).reshape(count, 3, height, width) + 1000.0


def by_hand(key, box, height, width, how):
    """One box in plain Python: the first of ten draws that fits."""
    draws = uniform_rows(key.reshape(1), fold(fold("erase"), box), 22)[0].tolist()
    for attempt in range(10):
        area = (how.area[0] + (how.area[1] - how.area[0]) * draws[attempt]) * height * width
        area /= how.count
        low, high = map(math.log, how.aspect)
        aspect = math.exp(low + (high - low) * draws[10 + attempt])
        exact = math.sqrt(area * aspect), math.sqrt(area / aspect)
        box_height, box_width = map(round, exact)
        # In float32 a side that lies between two whole numbers may fall to either.
        close = any(abs(side % 1 - 0.5) < 1e-3 for side in exact)
        if box_height < height and box_width < width:
            top = int(draws[20] * (height - box_height + 1))
            left = int(draws[21] * (width - box_width + 1))
            return (top, left, box_height, box_width), close
        if close:
            break
    return (0, 0, 0, 0), close


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 99), st.integers(1, 3))
def test_boxes_are_those_of_a_loop_and_lie_inside(height, width, seed, count):
    how = Erasing(1.0, "pixel", count, (0.02, 1 / 3), (0.3, 1 / 0.3))
    key = keys(6, seed)
    for box in range(count):
        found = boxes(key, box, height, width, how)
        for i, mine in enumerate(torch.stack(found, 1).tolist()):
            expected, close = by_hand(key[i], box, height, width, how)
            assert close or mine[2:] == [0, 0] == list(expected[2:]) or mine == list(expected)
        assert bool((found.top >= 0).all() and (found.left >= 0).all())
        assert bool((found.top + found.height <= height).all())
        assert bool((found.left + found.width <= width).all())


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_inside_is_the_slice(height, width, data):
    values = []
    for _ in range(3):
        top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
        sides = data.draw(st.integers(0, height - top)), data.draw(st.integers(0, width - left))
        values.append((top, left, *sides))
    found = inside(Boxes(*torch.tensor(values).unbind(1)), height, width)
    for mask, (top, left, tall, wide) in zip(found, values, strict=True):
        expected = torch.zeros(1, height, width, dtype=torch.bool)
        expected[:, top : top + tall, left : left + wide] = True
        assert torch.equal(mask, expected)


def test_a_quarter_is_erased_in_and_the_rest_is_left():
    key, before = keys(2000), images(2000, 9, 8)
    after = erase(before, key, HOW)
    changed = (after != before).flatten(1).any(1)
    assert abs(changed.float().mean() - 0.25) < 0.05
    gate = uniform_rows(key, fold("erase"), 2)[:, 0] < 0.25
    assert torch.equal(changed, gate)
    box = inside(boxes(key, 0, 9, 8, HOW), 9, 8) & gate[:, None, None, None]
    assert torch.equal(after != before, box.expand_as(before))


def test_areas_and_aspects_are_those_that_were_asked_for():
    found = boxes(keys(4000), 0, 300, 400, HOW)
    area = (found.height * found.width / 120_000).numpy()
    aspect = np.log((found.height / found.width).numpy())
    assert 0.018 < area.min() < 0.025
    assert 0.32 < area.max() < 0.34
    # Uniform, but that large and flat boxes do not fit: those are drawn anew.
    assert abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.01
    assert abs(aspect.mean()) < 0.05
    assert abs(aspect.min() - math.log(0.3)) < 0.1
    assert abs(aspect.max() + math.log(0.3)) < 0.1


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_what_fills_a_box(mode):
    how = Erasing(1.0, mode, 1, (0.2, 0.3), (0.5, 2.0))
    before = images(300, 16, 16)
    after = erase(before, keys(300), how)
    erased = after != before
    values = after[erased]
    if mode == "const":
        assert (values == 0).all()
        return
    if mode == "rand":
        colours = [image[mask].reshape(3, -1) for image, mask in zip(after, erased, strict=True)]
        assert all(bool((colour == colour[:, :1]).all()) for colour in colours)
        values = torch.stack([colour[:, 0] for colour in colours]).flatten()
    assert values.unique().numel() > 0.9 * min(values.numel(), 900)
    assert stats.kstest(values[::7].numpy(), "norm").pvalue > 1e-3


def test_noise_is_normal_and_uncorrelated():
    numbers = noise(keys(400), fold("test"), 512)
    assert stats.kstest(numbers.flatten()[::37].numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(numbers.T[::8])
    off_diagonal = correlation - torch.eye(len(correlation))
    assert off_diagonal.abs().max() < 0.25  # 2,016 pairs, each with a standard deviation of 0.05
    rows = torch.corrcoef(numbers[:64])
    assert (rows - torch.eye(64)).abs().max() < 0.25


def test_a_sample_is_erased_in_by_its_key_alone():
    key, before = keys(40), images(40, 12, 12)
    for mode in ("pixel", "rand", "const"):
        how = Erasing(0.7, mode, 3, (0.02, 1 / 3), (0.3, 3.3))
        whole = erase(before, key, how)
        parts = [erase(before[i : i + 5], key[i : i + 5], how) for i in range(0, 40, 5)]
        assert torch.equal(whole, torch.cat(parts))


def test_the_number_of_boxes_is_uniform():
    how = Erasing(1.0, "const", 3, (0.02, 1 / 3), (0.3, 3.3))
    number = 1 + (uniform_rows(keys(3000), fold("erase"), 2)[:, 1] * 3).long()
    shares = torch.bincount(number, minlength=4)[1:] / 3000
    assert (shares - 1 / 3).abs().max() < 0.05
    key = keys(3000)
    after = erase(images(3000, 8, 8), key, how)
    all_boxes = torch.zeros(3000, 1, 8, 8, dtype=torch.bool)
    for box in range(3):
        all_boxes |= inside(boxes(key, box, 8, 8, how), 8, 8) & (number > box)[:, None, None, None]
    assert torch.equal(after == 0, all_boxes.expand_as(after))


def test_nothing_to_erase():
    before = images(2, 4, 4)
    assert erase(before, keys(2), Erasing(0.0, "pixel", 1, (0.1, 0.2), (1, 1))) is before
    flat = erase(images(20, 1, 1), keys(20), Erasing(1.0, "pixel", 1, (0.02, 1 / 3), (0.3, 3.3)))
    assert torch.equal(flat, images(20, 1, 1))
