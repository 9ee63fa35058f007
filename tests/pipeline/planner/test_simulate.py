"""The simulator against closed forms, and against what every timing must keep to."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from errors import refuses
from quadriga.pipeline.planner.timeline import Event, Timeline, Times, lower_bound, simulate, slack
from quadriga.pipeline.schedules import SCHEDULES, make_schedule
from quadriga.pipeline.schedules.actions import (
    Action,
    Backward,
    Forward,
    Place,
    Schedule,
    Update,
    Wait,
)

STEPS = 5


def slots(low: int, length: int) -> st.SearchStrategy[tuple[float, ...]]:
    # Whole numbers: their sums are exact, so times can be compared with ==.
    return st.lists(st.integers(low, 9), min_size=length, max_size=length).map(
        lambda numbers: tuple(map(float, numbers))
    )


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[str, Times, int]:
    stages = draw(st.integers(1, 5))
    times = Times(
        forward=draw(slots(1, stages)),
        backward=draw(slots(1, stages)),
        transfer=draw(slots(0, stages - 1)),
        beside=draw(slots(0, stages)),
        step=draw(slots(0, stages)),
        is_deferred=draw(st.booleans()),
    )
    return draw(st.sampled_from(sorted(SCHEDULES))), times, draw(st.integers(stages, 3 * stages))


def find(timeline: Timeline, kind: type[Action]) -> dict[tuple[int, Action], Event]:
    return {(e.stage, e.action): e for e in timeline.events if isinstance(e.action, kind)}


@given(pipelines())
@hypothesis_settings(max_examples=60)
def test_what_every_timing_keeps_to(case: tuple[str, Times, int]) -> None:
    name, times, micro = case
    schedule = make_schedule(name)
    timeline = simulate(schedule, times, micro, STEPS)
    forward, backward = find(timeline, Forward), find(timeline, Backward)
    every = {(s, Forward(t, j)) for s in range(times.stages) for t in range(STEPS)
             for j in range(micro)}  # fmt: skip
    kinds = Counter(type(event.action) for event in timeline.events)
    assert kinds[Forward] == kinds[Backward] == len(every)
    assert kinds[Update] == times.stages * STEPS
    assert set(forward) == every
    for (stage, action), event in forward.items():
        back = backward[stage, Backward(*action)]
        assert event.end == event.start + times.forward[stage]
        assert back.end == back.start + times.backward[stage]
        assert event.end <= back.start
        if stage < times.stages - 1:
            assert event.end + times.transfer[stage] <= forward[stage + 1, action].start
            later = backward[stage + 1, Backward(*action)]
            assert later.end + times.transfer[stage] <= back.start
    check_stages(timeline, schedule)
    assert timeline.step_seconds >= lower_bound(name, times, micro) or name == "2bw"


def check_stages(timeline: Timeline, schedule: Schedule) -> None:
    times, updates = timeline.times, find(timeline, Update)
    for stage in range(times.stages):
        events = timeline.of_stage(stage)
        passes = [e for e in events if isinstance(e.action, (Forward, Backward))]
        busy = sorted(passes, key=lambda event: event.start)
        assert busy == passes
        assert all(a.end <= b.start for a, b in itertools.pairwise(busy))
        bound = schedule.in_flight(Place(stage, times.stages, timeline.micro_batches))
        assert timeline.in_flight[stage] == min(bound, timeline.micro_batches * STEPS)
        for event in busy:
            needed = timeline.version[event.action.step]
            for step in range(needed):  # the weights are those of these updates
                assert updates[stage, Update(step)].end <= event.start
        waits = [e for e in events if isinstance(e.action, Wait)]
        assert [e.action.step for e in waits] == list(range(STEPS))


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "micro"), [(1, 1), (2, 2), (3, 5), (4, 4), (4, 16), (8, 8)])
def test_bubble_of_a_flush(name: str, stages: int, micro: int) -> None:
    times = Times(forward=(1.0,) * stages, backward=(2.0,) * stages)
    timeline = simulate(make_schedule(name), times, micro, STEPS)
    assert timeline.step_seconds == 3 * (micro + stages - 1)
    assert timeline.bubble == pytest.approx((stages - 1) / (micro + stages - 1), abs=1e-12)


def test_sequential_takes_every_pass_after_the_other() -> None:
    times = Times(forward=(1.0, 4.0), backward=(3.0, 2.0), transfer=(5.0,), beside=(7.0, 7.0))
    timeline = simulate(make_schedule("sequential"), times, 6, STEPS)
    assert timeline.step_seconds == 6 * (10 + 2 * 5) + 7


@st.composite
def without_transfers(draw: st.DrawFn) -> tuple[Times, int]:
    stages = draw(st.integers(1, 6))
    times = Times(forward=draw(slots(1, stages)), backward=draw(slots(1, stages)))
    return times, draw(st.integers(stages, 3 * stages))


@given(without_transfers())
@hypothesis_settings(max_examples=60)
def test_2bw_is_as_fast_as_its_slowest_stage(case: tuple[Times, int]) -> None:
    times, micro = case
    timeline = simulate(make_schedule("2bw"), times, micro, 14)
    slowest = max(f + b for f, b in zip(times.forward, times.backward, strict=True))
    assert timeline.step_seconds == micro * slowest == lower_bound("2bw", times, micro)


@given(st.integers(1, 6), st.integers(0, 8), st.integers(1, 5), st.integers(1, 9))
@hypothesis_settings(max_examples=40)
def test_slack_of_2bw(stages: int, more: int, forward: int, backward: int) -> None:
    """Between an update's gradients and its first use lie (m - d + 1) passes, (F + B) each."""
    micro, both = stages + more, forward + backward
    times = Times(forward=(float(forward),) * stages, backward=(float(backward),) * stages)
    timeline = simulate(make_schedule("2bw"), times, micro, 8)
    own, common = slack(timeline, 4)
    assert own == [(micro - stages + 1 + s) * both for s in range(stages)]
    assert common == (micro - stages + 1) * both


@given(st.integers(1, 5), st.integers(0, 6))
@hypothesis_settings(max_examples=30)
def test_2bw_hides_what_fits_into_the_slack(stages: int, more: int) -> None:
    micro = stages + more
    room = (micro - stages + 1) * 3.0
    plain = Times(forward=(1.0,) * stages, backward=(2.0,) * stages)
    hidden = Times(forward=plain.forward, backward=plain.backward, beside=(room,) * stages)
    longer = Times(forward=plain.forward, backward=plain.backward, beside=(room + 1,) * stages)
    schedule = make_schedule("2bw")
    assert simulate(schedule, plain, micro, 9).step_seconds == micro * 3
    assert simulate(schedule, hidden, micro, 9).step_seconds == micro * 3
    assert simulate(schedule, longer, micro, 9).step_seconds > micro * 3


def test_2bw_that_does_not_defer_is_slower() -> None:
    values = {"forward": (1.0,) * 3, "backward": (2.0,) * 3, "beside": (4.0,) * 3}
    late = simulate(make_schedule("2bw"), Times(**values), 8, 8)
    at_once = simulate(make_schedule("2bw"), Times(**values, is_deferred=False), 8, 8)
    assert late.step_seconds == 24
    assert at_once.step_seconds > late.step_seconds


def test_flushed_steps_come_before() -> None:
    times = Times(forward=(1.0,) * 3, backward=(2.0,) * 3)
    timeline = simulate(make_schedule("2bw", flushed_steps=2), times, 4, 9)
    assert timeline.version == (0, 1, 2, 2, 3, 4, 5, 6, 7)
    assert timeline.ends[0] == 3 * (4 + 2)
    assert timeline.ends[1] == 2 * timeline.ends[0]
    assert timeline.step_seconds == 12


def test_actions_that_wait_for_one_another_are_a_fault() -> None:
    class Stuck(Schedule):
        name = "stuck"

        def actions(self, place: Place, first: int, goes_on: object) -> Iterator[Action]:
            yield Wait(0)

        def in_flight(self, place: Place) -> int:
            return 0

    with refuses("wait", error=RuntimeError):
        simulate(Stuck(), Times(forward=(1.0,), backward=(1.0,)), 1, 1)


def test_lengths_must_agree() -> None:
    with refuses("transfer", "1", error=ValueError):
        Times(forward=(1.0, 1.0), backward=(1.0, 1.0), transfer=(1.0, 1.0))
    assert not math.isnan(Times(forward=(1.0,), backward=(1.0,)).stages)
