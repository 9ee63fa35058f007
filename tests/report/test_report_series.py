import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from report_fakes import record

from quadriga.report.charts import linear_scale, logarithmic_scale, path_of, value_range
from quadriga.report.series import (
    buckets,
    curve_of,
    curves_of,
    decades,
    envelope,
    moving_average,
    short,
    ticks,
)

finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(finite, max_size=60), st.integers(0, 40))
def test_moving_average_equals_the_mean_of_its_window(values, radius):
    found = moving_average(values, radius)
    assert len(found) == len(values)
    reach = min(radius, (len(values) - 1) // 2)
    for i, average in enumerate(found):
        window = values[max(0, i - min(i, reach)) : i + min(i, reach) + 1]
        if i + reach >= len(values):
            window = values[i - reach :]
        assert average == pytest.approx(sum(window) / len(window), abs=1e-6, rel=1e-9)


def test_moving_average_survives_a_spike():
    values = [1.0] * 20 + [1e30] + [1.0] * 40
    assert moving_average(values, 3)[30:] == pytest.approx([1.0] * 31)


@given(st.integers(1, 3000), st.integers(1, 500))
def test_buckets_cover_every_point_once(count, limit):
    parts = buckets(count, limit)
    assert [i for part in parts for i in part] == list(range(count))
    assert len(parts) == min(count, limit)


@given(st.lists(finite, min_size=1, max_size=2000))
def test_envelope_keeps_the_extremes_in_order(values):
    points = envelope([float(i) for i in range(len(values))], values)
    assert min(v for _, v in points) == min(values)
    assert max(v for _, v in points) == max(values)
    steps = [step for step, _ in points]
    assert steps == sorted(set(steps))
    assert all(values[int(step)] == value for step, value in points)


@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5), st.integers(2, 8))
def test_ticks_are_round_and_inside(low, length, wanted):
    assume(length > abs(low) * 1e-6)
    high = low + length
    found = ticks(low, high, wanted)
    assert 1 <= len(found) <= 2 * wanted + 2
    assert all(low - 1e-6 * length <= value <= high + 1e-6 * length for value in found)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert gaps == pytest.approx(gaps[:1] * len(gaps))


def test_tick_values():
    assert ticks(0, 1) == [0.0, 0.5, 1.0]
    assert ticks(0, 40, 4) == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert ticks(1.0, 40042.0, 2) == [20000.0, 40000.0]
    assert decades(0.9, 1100) == [1.0, 10.0, 100.0, 1000.0]
    assert decades(0.9, 40) == [1.0, 2.0, 5.0, 10.0, 20.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.43125, "0.4313"),
        (1.5e-4, "1.5e-4"),
        (12400.4, "12,400"),
        (-2.0, "-2"),
        (3.2e7, "3.2e7"),
        (math.inf, "inf"),
    ],
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_curves_are_the_loss_the_metrics_and_what_the_engine_logs():
    metrics = [record(step, accuracy=step / 10) for step in (1, 2, 3)]
    curves = {curve.title: curve for curve in curves_of(metrics)}
    assert list(curves) == [
        "loss",
        "accuracy",
        "learning rate",
        "gradient norm",
        "throughput",
        "time spent waiting for data",
        "memory",
    ]
    assert curves["loss"].values == [1.25, 0.75, 1 / 3 + 0.25]
    assert curves["time spent waiting for data"].values == [1.5, 1.5, 1.5]
    assert curves["accuracy"].steps == [1.0, 2.0, 3.0]
    assert curves["accuracy"].values == [10.0, 20.0, 30.0]
    assert curves["accuracy"].unit == "%"


def test_values_that_are_not_finite_are_counted_and_not_drawn():
    metrics = [record(1, loss=math.nan), record(2, loss=3.0), record(3, loss=math.inf)]
    curve = curve_of(metrics, "loss", "loss")
    assert (curve.steps, curve.values, curve.skipped) == ([2.0], [3.0], 2)


def test_far_apart_positive_values_are_logarithmic():
    steep = curve_of([record(1, loss=100.0), record(2, loss=1.0)], "loss", "loss")
    flat = curve_of([record(1, loss=2.0), record(2, loss=1.0)], "loss", "loss")
    signed = curve_of([record(1, loss=100.0), record(2, loss=-1.0)], "loss", "loss")
    assert [c.logarithmic for c in (steep, flat, signed)] == [True, False, False]


@given(st.lists(finite, min_size=1, max_size=300))
def test_every_drawn_point_is_inside_the_drawing(values):
    curve = curve_of([record(i + 1, loss=v) for i, v in enumerate(values)], "loss", "loss")
    low, high = value_range(curve)
    assert low < high
    scale = logarithmic_scale(low, high) if curve.logarithmic else linear_scale(low, high)
    assert all(0 <= scale(value) <= 1 for value in values)
    path = path_of([(1.0, values[0])], lambda step: 0.5, scale)
    assert path.startswith("M494.0,")
