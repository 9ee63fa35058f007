"""What every file of the schedules' room must keep to; a new file is found by itself."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import refuses
from quadriga.config.base import construct, kinds
from quadriga.contracts import Progress, ScheduleConfig
from quadriga.schedules.curves import warmup_length

KINDS = kinds(ScheduleConfig)  # type: ignore[type-abstract]

pytestmark = pytest.mark.parametrize("kind", KINDS)


def config_of(kind: str, **values: object) -> ScheduleConfig:
    return construct(ScheduleConfig, {"kind": kind, **values})  # type: ignore[type-abstract]


def curve(config: ScheduleConfig, total: int, steps: range | None = None) -> list[float]:
    return [
        config.factor(Progress(step=step, total_steps=total, batch_size=8, dataset_size=40))
        for step in steps or range(total + 3)
    ]


def test_config_round_trips_through_json(kind: str) -> None:
    config = config_of(kind, warmup_steps=3, start_factor=0.25)
    again = construct(ScheduleConfig, json.loads(config.as_json()))  # type: ignore[type-abstract]
    assert again == config
    assert config.kind() == kind


@given(
    total=st.integers(1, 60),
    warmup=st.integers(0, 70),
    start=st.floats(0, 1),
)
def test_factors_are_bounded_rise_in_the_warmup_and_fall_after_it(
    kind: str, total: int, warmup: int, start: float
) -> None:
    factors = curve(config_of(kind, warmup_steps=warmup, start_factor=start), total)
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    rise, fall = factors[:warmup], factors[warmup:]
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    if warmup:
        assert rise[0] == start
        steps = range(len(rise))
        assert rise == pytest.approx([start + (1 - start) * step / warmup for step in steps])
    if warmup < total:
        assert fall[0] == 1.0


def test_a_step_needs_no_step_before_it(kind: str) -> None:
    config = config_of(kind, warmup_steps=4)
    whole = curve(config, 30)
    assert curve(config, 30, range(17, 33)) == whole[17:]
    assert curve(config, 30, range(32, -1, -1)) == whole[::-1]


def test_warmup_in_epochs_is_warmup_in_steps(kind: str) -> None:
    # An epoch of 40 samples is 5 steps of 8.
    in_epochs, in_steps = config_of(kind, warmup_epochs=1.2), config_of(kind, warmup_steps=6)
    progress = Progress(step=0, total_steps=30, batch_size=8, dataset_size=40)
    assert warmup_length(in_epochs, progress) == 6
    assert curve(in_epochs, 30) == curve(in_steps, 30)


def test_two_units_of_warmup_are_refused(kind: str) -> None:
    with refuses("warmup_steps", "0", "warmup_epochs", "5"):
        config_of(kind, warmup_epochs=1, warmup_steps=5)
