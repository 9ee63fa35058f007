import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from errors import refuses
from quadriga.models.parts.positions import interpolate_table, sincos_1d, sincos_table


def reference_row(row: int, column: int, width: int) -> list[float]:
    """One token's features, written out: column before row, sines before cosines."""
    quarter = width // 4
    rates = [1.0 / 10000 ** (k / quarter) for k in range(quarter)]
    return [
        wave(place * rate)
        for place in (column, row)
        for wave in (math.sin, math.cos)
        for rate in rates
    ]


@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    quarter=st.integers(1, 6),
    prefix=st.integers(0, 2),
)
def test_sincos_table_is_the_formula(rows: int, columns: int, quarter: int, prefix: int) -> None:
    width = 4 * quarter
    expected = [[0.0] * width] * prefix + [
        reference_row(row, column, width) for row in range(rows) for column in range(columns)
    ]
    table = sincos_table(rows, columns, width, prefix)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, torch.tensor(expected), rtol=0, atol=1e-7)


def test_sincos_1d_keeps_the_dtype_of_the_positions() -> None:
    features = sincos_1d(torch.tensor([0.0, 2.5], dtype=torch.float64), 4)
    assert features.dtype == torch.float64
    assert features[1].tolist() == pytest.approx(
        [math.sin(2.5), math.sin(0.025), math.cos(2.5), math.cos(0.025)], abs=1e-15
    )


def test_interpolation_to_the_same_grid_is_the_identity() -> None:
    table = sincos_table(4, 4, 8, prefix=1)
    assert interpolate_table(table, (4, 4), prefix=1) is table


@pytest.mark.parametrize("antialias", [False, True])
def test_interpolation_keeps_the_prefix_and_a_constant_table(antialias: bool) -> None:
    patches = torch.arange(8.0).expand(9, 8)
    table = torch.cat([torch.full((2, 8), -7.0), patches])
    new = interpolate_table(table, (2, 5), prefix=2, antialias=antialias)
    assert torch.equal(new[:2], table[:2])
    torch.testing.assert_close(new[2:], torch.arange(8.0).expand(10, 8))


@pytest.mark.parametrize("antialias", [False, True])
def test_interpolation_is_the_bicubic_of_each_feature(antialias: bool) -> None:
    table = sincos_table(6, 6, 8)
    new = interpolate_table(table, (4, 3), antialias=antialias)
    for feature in range(8):
        picture = table[:, feature].reshape(1, 1, 6, 6)
        expected = functional.interpolate(
            picture, size=(4, 3), mode="bicubic", align_corners=False, antialias=antialias
        )
        torch.testing.assert_close(new[:, feature], expected.flatten())


def test_interpolation_keeps_half_precision() -> None:
    assert interpolate_table(torch.ones(4, 4, dtype=torch.bfloat16), (3, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [1, 6])
def test_only_square_tables_are_interpolated(rows: int) -> None:
    with refuses("square"):
        interpolate_table(torch.zeros(rows, 8), (2, 2), prefix=1)
