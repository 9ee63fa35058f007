"""What every schedule must do, whatever the numbers: counted on its actions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import refuses
from quadriga.pipeline.schedules import SCHEDULES, TwoBW, make_schedule
from quadriga.pipeline.schedules.actions import Backward, Forward, Place, Update, Wait

NUMBERS = {"stages": st.integers(1, 6), "extra": st.integers(0, 7), "steps": st.integers(0, 5)}


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(sorted(SCHEDULES)), first=st.integers(0, 4), **NUMBERS)
def test_each_pass_once_and_in_order(name, stages, extra, steps, first):
    micro_batches, schedule = stages + extra, make_schedule(name, flushed_steps=2)
    last = first + steps
    numbers = [(t, j) for t in range(first, last) for j in range(micro_batches)]
    for stage in range(stages):
        place = Place(stage, stages, micro_batches)
        asked: list[int] = []

        def goes_on(step: int, asked: list[int] = asked) -> bool:
            asked.append(step)
            return step < last

        actions = list(schedule.actions(place, first, goes_on))
        assert asked == list(range(first, last + 1)), "each step is asked for once, in order"
        forwards = [(a.step, a.micro) for a in actions if isinstance(a, Forward)]
        backwards = [(a.step, a.micro) for a in actions if isinstance(a, Backward)]
        assert forwards == backwards == numbers
        assert [a.step for a in actions if isinstance(a, Update)] == list(range(first, last))
        assert [a.step for a in actions if isinstance(a, Wait)] == list(range(first, last))
        in_flight, updated, waited = set(), set(), set()
        for action in actions:
            match action:
                case Forward(step, micro):
                    version = schedule.version(step)
                    assert version <= first or version - 1 in waited, "its weights are there"
                    in_flight.add((step, micro))
                    assert len(in_flight) <= schedule.in_flight(place)
                    live = {schedule.version(t) for t, _ in in_flight}
                    assert len(live) <= 1 + schedule.delay
                case Backward(step, micro):
                    in_flight.remove((step, micro))
                case Update(step):
                    assert not any(t <= step for t, _ in in_flight), "its gradient is complete"
                    if schedule.delay:
                        # The copy of the next version: nothing in flight was computed with it.
                        copies = {schedule.version(t) % 2 for t, _ in in_flight}
                        assert (step + 1) % 2 not in copies
                    updated.add(step)
                case Wait(step):
                    assert step in updated
                    waited.add(step)


@settings(deadline=None, max_examples=60)
@given(stages=st.integers(1, 6), extra=st.integers(0, 7), stop=st.integers(0, 4))
def test_neighbours_agree_on_the_order_whenever_a_run_is_stopped(stages, extra, stop):
    micro_batches = stages + extra
    for name in SCHEDULES:
        schedule = make_schedule(name)
        orders = []
        for stage in range(stages):
            place = Place(stage, stages, micro_batches)
            actions = list(schedule.actions(place, 0, lambda t: t < stop))
            orders.append(
                (
                    [a for a in actions if isinstance(a, Forward)],
                    [a for a in actions if isinstance(a, Backward)],
                )
            )
        assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize("stages", range(2, 6))
def test_two_bw_needs_as_many_micro_batches_as_stages(stages):
    TwoBW().check(stages, stages)
    with refuses("2bw", f"{stages}", f"{stages - 1}"):
        TwoBW().check(stages, stages - 1)


def test_versions_are_one_behind_and_never_more_than_two():
    schedule = TwoBW()
    assert [schedule.version(t) for t in range(5)] == [0, 0, 1, 2, 3]
    assert [TwoBW(2).version(t) for t in range(6)] == [0, 1, 2, 2, 3, 4]
    assert [make_schedule("1f1b").version(t) for t in range(3)] == [0, 1, 2]


def test_an_unknown_schedule_is_named_with_the_nearest():
    with refuses("gpip", "gpipe"):
        make_schedule("gpip")
