"""What the policies draw: names, probabilities and magnitudes, over many keyed draws."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import refuses
from quadriga.data.views.augmentation import (
    CHOICES,
    ColorJitter,
    RandAugment,
    RandAugmentSettings,
    ThreeAugment,
    amount_of,
    parse_rand_augment,
)
from quadriga.data.views.operations import OPERATIONS, Filter
from quadriga.randomness import Stream

FILL = (124, 116, 104)
MANY = 3000


def drawn_with(text, interpolation="bicubic", count=MANY):
    policy = RandAugment(parse_rand_augment(text), interpolation, FILL)
    return [policy.draw(Stream(key)) for key in range(count)]


def flat(images):
    return [drawn for image in images for drawn in image]


def test_the_language():
    assert parse_rand_augment("rand-m9-mstd0.5-inc1") == RandAugmentSettings(
        magnitude=9, deviation=0.5, increasing=True
    )
    assert parse_rand_augment("rand") == RandAugmentSettings(10, 2, 0, 10, 0.5, False, False)
    assert parse_rand_augment("rand-n3-p0.7-w0-mmax12-m6.5-inc0-mstd101") == RandAugmentSettings(
        6.5, 3, math.inf, 12, 0.7, False, True
    )


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (
            "original-mstd0.5",
            ("augment", "none", "three_augment", "rand-m9-mstd0.5-inc1", "'original-mstd0.5'"),
        ),
        ("", ("augment", "none", "''")),
        ("rand-x9", ("augment", "'rand-x9'", "'x9'")),
        ("rand-m", ("augment", "'rand-m'", "'m'")),
        ("rand-m9-m8", ("augment", "'rand-m9-m8'", "once")),
        ("rand-w1", ("augment", "'w1'", "w 0")),
        ("rand-n0", ("augment", "'n0'", "1 to 13")),
        ("rand-n2.5", ("augment", "'n2.5'", "1 to 13")),
        ("rand-p1.5", ("augment", "'p1.5'", "0 to 1")),
        ("rand-inc2", ("augment", "'inc2'", "0 or 1")),
        ("rand-minf", ("augment", "'minf'", "0")),
        ("rand-mmax0", ("augment", "'mmax0'", "above 0")),
        ("rand-m9-", ("augment", "'rand-m9-'", "''")),
        ("rand-m-9", ("augment", "'rand-m-9'", "'m'")),
    ],
)
def test_what_is_not_in_the_language(text, fragments):
    with refuses(*fragments, error=ValueError):
        parse_rand_augment(text)


@given(st.text(alphabet="rand-mstdincpw0123456789.", max_size=24))
def test_any_text_is_read_or_refused_in_one_line(text):
    message, settings = "", RandAugmentSettings()
    try:
        settings = parse_rand_augment(f"rand-{text}")
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
    assert 0 <= settings.probability <= 1
    assert 1 <= settings.operations <= 13


def test_two_of_fifteen_each_with_half_a_chance():
    images = drawn_with("rand-m9-mstd0.5-inc1")
    counts = Counter(len(image) for image in images)
    for number, share in enumerate((0.25, 0.5, 0.25)):
        assert abs(counts[number] / MANY - share) < 0.03
    names = Counter(drawn.name for drawn in flat(images))
    assert names.keys() == CHOICES.keys()
    # 3,000 operations of 15 kinds: 200 of each, with a standard deviation of 14.
    assert max(abs(n - 200) for n in names.values()) < 70
    assert {drawn.fill for drawn in flat(images)} == {FILL}


def test_magnitudes_are_normal_and_cut_off():
    rotations = [abs(d.amount) / 3 for d in flat(drawn_with("rand-m9-mstd0.5-p1-n13", count=500))
                 if d.name == "rotate"]  # fmt: skip
    assert max(rotations) == pytest.approx(10)
    # Normal (9, 0.5), of which 2.3 % are above 10: that moves the mean by 0.004.
    assert abs(np.mean(rotations) - 9) < 0.1
    assert abs(np.std(rotations) - 0.5) < 0.08
    uniform = [abs(d.amount) / 3 for d in flat(drawn_with("rand-m8-mstdinf-p1-n13", count=500))
               if d.name == "rotate"]  # fmt: skip
    assert abs(np.mean(uniform) - 4) < 0.5
    assert 7.8 < max(uniform) <= 8
    assert {abs(d.amount) for d in flat(drawn_with("rand-m40-mmax30-p1", count=100))
            if d.name == "rotate"} == {90.0}  # fmt: skip


def test_signs_are_even():
    amounts = [d.amount for d in flat(drawn_with("rand-m9-inc1-p1")) if d.name == "shear_x"]
    assert {round(abs(a), 12) for a in amounts} == {0.27}
    assert abs(np.mean(np.sign(amounts))) < 0.15


def amounts(name, level, increasing):
    settings = RandAugmentSettings(increasing=increasing)
    found = {amount_of(name, level, settings, Stream(key)) for key in range(40)}
    return sorted(round(amount, 10) for amount in found)


@pytest.mark.parametrize(
    ("name", "level", "plain", "increasing"),
    [
        ("rotate", 0.9, [-27, 27], [-27, 27]),
        ("shear_y", 1.0, [-0.3, 0.3], [-0.3, 0.3]),
        ("translate_x", 1.0, [-0.45, 0.45], [-0.45, 0.45]),
        ("posterize", 0.0, [0], [4]),
        ("posterize", 0.9, [3], [1]),
        ("posterize", 1.0, [4], [0]),
        ("solarize", 0.5, [128], [128]),
        ("solarize", 0.9, [230], [26]),
        ("solarize_add", 1.0, [110], [110]),
        ("solarize_add", 2.0, [128], [128]),
        ("sharpness", 0.9, [1.72], [0.19, 1.81]),
        ("colour", 0.0, [0.1], [1]),
        ("brightness", 1.0, [1.9], [0.1, 1.9]),
        ("contrast", 2.0, [3.7], [0.1, 2.8]),
        ("equalize", 0.9, [0], [0]),
    ],
)
def test_what_a_magnitude_means(name, level, plain, increasing):
    assert amounts(name, level, False) == plain
    assert amounts(name, level, True) == increasing


def test_weights_draw_no_operation_twice_and_geometry_most():
    images = drawn_with("rand-w0-p1-n2")
    assert all(image[0].name != image[1].name for image in images)
    first = Counter(image[0].name for image in images)
    for name, weight in CHOICES.items():
        deviation = math.sqrt(weight * (1 - weight) / MANY)
        assert abs(first[name] / MANY - weight) <= 5 * deviation, name
    thirteen = drawn_with("rand-w0-p1-n13", count=20)
    assert all({d.name for d in i} == {n for n, w in CHOICES.items() if w} for i in thirteen)


def test_filters():
    moves = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    for interpolation, kinds in (
        ("bicubic", {Filter.BICUBIC}),
        ("bilinear", {Filter.BILINEAR}),
        ("random", {Filter.BICUBIC, Filter.BILINEAR}),
    ):
        images = drawn_with("rand-p1", interpolation, 200)
        assert {d.filter for d in flat(images) if d.name in moves} == kinds


def test_three_augment_takes_one_of_three_and_then_jitters():
    images = [ThreeAugment(0.3).draw(Stream(key)) for key in range(1500)]
    counts = Counter(image[0].name for image in images)
    assert counts.keys() == {"grey", "solarize", "blur"}
    assert max(abs(n - 500) for n in counts.values()) < 80
    blurs = [image[0].amount for image in images if image[0].name == "blur"]
    assert 0.1 <= min(blurs) < 0.15
    assert 1.95 < max(blurs) < 2.0
    assert {image[0].amount for image in images if image[0].name == "solarize"} == {128}
    orders = Counter(tuple(drawn.name for drawn in image[1:]) for image in images)
    assert len(orders) == 6
    assert max(abs(n - 250) for n in orders.values()) < 70


def test_jitter():
    assert ColorJitter(0.0).draw(Stream(0)) == []
    images = [ColorJitter(0.4).draw(Stream(key)) for key in range(1000)]
    factors = np.array([[drawn.amount for drawn in image] for image in images])
    assert factors.shape == (1000, 3)
    assert 0.6 <= factors.min() < 0.61
    assert 1.39 < factors.max() < 1.4
    assert np.abs(factors.mean(0) - 1).max() < 0.03
    assert min(d.amount for k in range(500) for d in ColorJitter(3.0).draw(Stream(k))) >= 0


@given(st.integers(0, 2**64 - 1))
def test_draws_follow_from_the_key(key):
    policy = RandAugment(parse_rand_augment("rand-m9-mstd0.5-inc1"), "random", FILL)
    assert policy.draw(Stream(key)) == policy.draw(Stream(key))
    assert {d.name for d in policy.draw(Stream(key))} <= set(OPERATIONS)
