"""Numbers as people read them."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.formatting import bytes_, count, duration, flops, measured


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0 k"),
        (999_949, "999.9 k"),
        (999_951, "1.0 M"),
        (112_345_678, "112.3 M"),
        (5.44e9, "5.4 G"),
        (0.25, "0.2"),
        (-1500, "-1.5 k"),
        (3e21, "3000.0 E"),
    ],
)
def test_count(value, text):
    assert count(value) == text


def test_flops_and_bytes():
    assert flops(17.6e9) == "17.6 GFLOP"
    assert flops(12) == "12 FLOP"
    assert bytes_(512) == "512 B"
    assert bytes_(1024) == "1.0 KiB"
    assert bytes_(3.2 * 2**30) == "3.2 GiB"
    assert bytes_(2**30 - 1) == "1.0 GiB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.35, "350 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (62, "1 min 02 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (86_369, "23 h 59 min"),
        (86_371, "1 d 00 h"),
        (200_000, "2 d 08 h"),
        (-62, "-1 min 02 s"),
        (math.inf, "unknown"),
        (math.nan, "unknown"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@given(st.floats(0, 1e7))
def test_duration_reads_back_to_its_rounding(seconds):
    units = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86_400}
    parts = re.findall(r"([\d.]+) (\w+)", duration(seconds))
    finest = units[parts[-1][1]] * (0.1 if "." in parts[-1][0] else 1)
    value = sum(float(number) * units[unit] for number, unit in parts)
    assert abs(value - seconds) <= finest / 2 + 1e-9 * seconds
    assert all(float(n) < {"s": 60, "min": 60, "h": 24}.get(unit, 1e4) for n, unit in parts)


@given(st.integers(0, 10**20))
def test_count_and_bytes_are_within_half_a_digit(value):
    for text, base, letters in ((count(value), 1000, "kMGTPE"), (bytes_(value), 1024, "KMGTPE")):
        number, prefix = re.fullmatch(r"([\d.]+) ?([kKMGTPE]?)i?B?", text).groups()
        unit = base ** (letters.index(prefix) + 1) if prefix else 1
        assert abs(float(number) * unit - value) <= 0.05 * unit * (1 + 1e-9)
        assert float(number) < base or prefix == "E"


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("held_out.accuracy", 0.97777, "97.78 %"),
        ("held_out.module_2.accuracy_5", 1.0, "100.00 %"),
        ("masked_lm_accuracy", 0.5, "50.00 %"),
        ("module_0.accuracy", 0.5, "50.00 %"),
        ("held_out.loss", 0.38591, "0.3859"),
        ("loss", 0.38591, "0.3859"),
        ("linear_probe.top1", 95.556, "95.56 %"),
        ("glue.accuracy", 80.5, "80.50 %"),
        ("glue.score", 80.5, "80.5"),
        ("knn.k", 20, "20"),
        ("retrieval.recall_5", 80.5, "80.50 %"),
        ("clustering.nmi", 0.5, "0.5"),
    ],
)
def test_accuracies_are_read_in_percent_however_they_are_written(metric, value, text):
    assert measured(metric, value) == text
