"""Mixup and cutmix against a loop over samples, their shares, and what a cut changes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quadriga.data.views.mixing import Mixing, beta, mix
from quadriga.randomness import fold, uniform_rows

BOTH = Mixing(0.8, 1.0, None, 1.0, 0.5, "elem")
CUTMIX = Mixing(0.0, 1.0, None, 1.0, 0.5, "elem")
MIXUP = Mixing(0.8, 0.0, None, 1.0, 0.5, "elem")


def batch_of(count, height=6, width=8, seed=0):
    """Every pixel of sample i is i + 1: a mixed image tells what it is made of."""
    rng = np.random.default_rng(seed)
    numbers = torch.arange(1.0, count + 1)
    return {
        "image": numbers[:, None, None, None].repeat(1, 3, height, width),
        "label": torch.arange(count) + 100,
        "index": torch.arange(count),
        "key": torch.from_numpy(rng.integers(-(2**63), 2**63, count)),
    }


def with_options(how, **changes):
    return Mixing(**{**vars(how), **changes})


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(["batch", "pair", "elem"]),
    st.sampled_from([None, (0.2, 0.8), (1.0, 1.0)]),
    st.sampled_from([(0.8, 1.0), (0.0, 1.0), (0.3, 0.0)]),
    st.integers(0, 50),
)
def test_share_is_the_share_of_the_pixels(count, height, width, mode, minmax, alphas, seed):
    before = batch_of(count, height, width, seed)
    after = mix(before, Mixing(*alphas, minmax, 0.9, 0.5, mode))
    image, share = after["image"], after["share"]
    assert image.shape == before["image"].shape
    assert share.dtype == image.dtype == torch.float32
    assert after["mixed_label"].dtype == torch.int64
    own = torch.arange(count)
    partner = (own ^ 1).clamp(max=count - 1)
    assert torch.equal(after["mixed_label"], before["label"][partner])
    assert torch.equal(after["label"], before["label"])
    assert bool(((share >= 0) & (share <= 1)).all())
    expected = share * (own + 1) + (1 - share) * (partner + 1)
    torch.testing.assert_close(image.mean((1, 2, 3)), expected, rtol=1e-5, atol=1e-5)
    if count % 2:
        assert share[-1] == 1
        assert torch.equal(image[-1], before["image"][-1])


def test_cutmix_shares_are_exact_and_its_images_unblended():
    before = batch_of(400, 7, 9)
    after = mix(before, CUTMIX)
    own = (after["image"] == before["image"])[:, 0].flatten(1)
    assert torch.equal(after["share"], own.sum(1) / torch.tensor(63.0))
    rows, columns = (~own).reshape(400, 7, 9).any(2).sum(1), (~own).reshape(400, 7, 9).any(1).sum(1)
    assert torch.equal(rows * columns, (~own).sum(1))  # a box


def test_cutmix_boxes_are_those_of_a_loop():
    before = batch_of(200, 16, 20)
    after = mix(before, CUTMIX)
    draws = uniform_rows(before["key"], fold("mix"), 7)
    shares = beta(draws[:, 2], 1.0)
    for i, (share, row) in enumerate(zip(shares.tolist(), draws.tolist(), strict=True)):
        side = (1 - share) ** 0.5
        tall, wide = int(16 * side), int(20 * side)
        y, x = int(row[3] * 16), int(row[4] * 20)
        top, bottom = max(0, y - tall // 2), min(16, y + tall // 2)
        left, right = max(0, x - wide // 2), min(20, x + wide // 2)
        expected = before["image"][i].clone()
        expected[:, top:bottom, left:right] = float((i ^ 1) + 1)
        assert torch.equal(after["image"][i], expected)


def test_minmax_boxes_keep_to_their_sides():
    after = mix(batch_of(600, 20, 40), with_options(CUTMIX, cutmix=0.0, cutmix_minmax=(0.25, 0.5)))
    other = after["image"][:, 0] != batch_of(600, 20, 40)["image"][:, 0]
    heights, widths = other.any(2).sum(1), other.any(1).sum(1)
    assert set(heights.tolist()) == set(range(5, 11))
    assert set(widths.tolist()) == set(range(10, 21))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_mixup_shares_have_the_beta_distribution(alpha):
    share = mix(batch_of(3000, 1, 1), with_options(MIXUP, mixup=alpha))["share"]
    assert stats.kstest(share.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixup_blends():
    before = batch_of(50)
    after = mix(before, MIXUP)
    share = after["share"][:, None, None, None]
    partner = before["image"][torch.arange(50) ^ 1]
    assert torch.equal(after["image"], before["image"] * share + partner * (1 - share))


def test_probabilities():
    before = batch_of(3000, 8, 8)
    after = mix(before, with_options(BOTH, probability=0.6, switch_probability=0.25))
    unmixed = after["share"] == 1
    # A few boxes of cutmix are empty.
    assert abs(unmixed.float().mean() - 0.4) < 0.05
    flat = after["image"].flatten(1)
    blended = (flat == flat[:, :1]).all(1) & ~unmixed
    whole = (after["image"] == before["image"][torch.arange(3000) ^ 1]).flatten(1).all(1)
    assert abs((blended & ~whole).float().mean() - 0.6 * 0.75) < 0.04
    nothing = mix(before, with_options(BOTH, probability=0.0))
    assert torch.equal(nothing["image"], before["image"])
    assert bool((nothing["share"] == 1).all())


def test_off_is_off():
    before = batch_of(4)
    off = Mixing(0.0, 0.0, None, 1.0, 0.5, "batch")
    assert not off.on
    assert mix(before, off) is before


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_what_shares_a_draw(mode):
    after = mix(batch_of(64), with_options(MIXUP, mode=mode))
    shares = after["share"]
    assert shares.unique().numel() == {"batch": 1, "pair": 32, "elem": 64}[mode]
    if mode == "pair":
        assert torch.equal(shares[::2], shares[1::2])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(["pair", "elem"]), st.integers(0, 9))
def test_micro_batches_of_even_size_mix_as_the_whole_batch(half, parts, mode, seed):
    size = 2 * half
    whole = batch_of(size * parts, seed=seed)
    cuts = [{n: t[i * size : (i + 1) * size] for n, t in whole.items()} for i in range(parts)]
    how = with_options(BOTH, mode=mode)
    mixed = [mix(cut, how) for cut in cuts]
    for name, tensor in mix(whole, how).items():
        assert torch.equal(tensor, torch.cat([cut[name] for cut in mixed])), name


def test_in_batch_mode_the_first_key_decides():
    first, second = batch_of(8), batch_of(8, seed=1)
    second["key"][0] = first["key"][0]
    how = with_options(BOTH, mode="batch")
    assert torch.equal(mix(first, how)["image"], mix(second, how)["image"])


def test_soft_targets_have_mass_one():
    after = mix({**batch_of(200), "label": torch.arange(200) % 10}, BOTH)
    target = torch.zeros(200, 10)
    target.scatter_add_(1, after["label"][:, None], after["share"][:, None])
    target.scatter_add_(1, after["mixed_label"][:, None], 1 - after["share"][:, None])
    torch.testing.assert_close(target.sum(1), torch.ones(200))
    assert bool((target >= 0).all())
