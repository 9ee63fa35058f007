"""What runs have cost, against numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.engine.logs.run_cost import RunCost, run_cost
from quadriga.workflow.ledger import as_json, longest_path, total_cost


def begin(step, process="a", ranks=2, time=100.0, start_up=4.0):
    return {
        "event": "begin",
        "process": process,
        "step": step,
        "ranks": ranks,
        "time": time,
        "batch_size": 8,
        "flops_per_sample": 10.0,
        "start_up_seconds": start_up,
    }


def steps(step, seconds, memory=1.0):
    return {"event": "steps", "step": step, "seconds": seconds, "memory_peak_gib": memory}


END = {"event": "end", "how": "finished"}


def test_a_run_that_nobody_stopped():
    events = [{"event": "start"}, begin(0), steps(6, 12.0), steps(10, 20.0, 1.5), END]
    assert run_cost(events) == RunCost(
        steps=10,
        samples=80,
        flops=800.0,
        seconds=20.0,
        device_seconds=40.0,
        start_up_seconds=4.0,
        attempts=1,
        memory_gib=1.5,
    )


def test_steps_that_are_made_again_count_once_and_are_lost_once():
    """Killed after step 9, of which 8 were saved; then on one rank to the end."""
    events = [begin(0), steps(5, 10.0), steps(9, 18.0)]
    events += [begin(8, "b", ranks=1), steps(12, 20.0), END]
    found = run_cost(events)
    assert (found.steps, found.samples, found.flops) == (12, 96, 960.0)
    assert found.seconds == pytest.approx(16.0 + 20.0)
    assert found.device_seconds == pytest.approx(2 * 16.0 + 20.0)
    assert (found.lost_steps, found.lost_seconds) == (1, pytest.approx(2.0))
    assert found.lost_device_seconds == pytest.approx(4.0)
    assert (found.attempts, found.start_up_seconds) == (2, 8.0)


def test_what_no_checkpoint_holds_is_lost_already():
    found = run_cost([begin(0), steps(5, 10.0), steps(9, 18.0)], saved=7)
    assert (found.steps, found.samples, found.flops) == (7, 56, 560.0)
    assert (found.seconds, found.lost_seconds, found.lost_steps) == (14.0, 4.0, 2)
    assert run_cost([begin(0), steps(9, 18.0)], saved=9) == run_cost([begin(0), steps(9, 18.0)])
    assert run_cost([begin(0), steps(9, 18.0)], saved=0).seconds == 0.0


def test_an_attempt_before_which_a_later_one_begins_is_lost_whole():
    events = [begin(0), steps(4, 4.0), begin(4, "b"), steps(8, 5.0), begin(2, "c"), steps(9, 7.0)]
    found = run_cost(events)
    assert found.seconds == pytest.approx(2.0 + 0.0 + 7.0)
    assert found.lost_seconds == pytest.approx(2.0 + 5.0)
    assert found.lost_steps == 2 + 4


def test_going_back_within_one_process_starts_it_once():
    found = run_cost([begin(0), steps(6, 6.0), END, begin(4), steps(8, 4.0), END])
    assert (found.start_up_seconds, found.lost_steps, found.attempts) == (4.0, 2, 2)


def test_evaluations_inside_an_attempt_are_part_of_it_and_others_are_added():
    inside = {"event": "evaluated", "process": "a", "step": 10, "seconds": 3.0, "time": 125.0}
    events = [begin(0), steps(10, 20.0), inside]
    found = run_cost(events)
    assert (found.seconds, found.evaluation_seconds) == (25.0, 3.0)
    alone = {"event": "evaluated", "process": "b", "step": 10, "seconds": 2.0, "ranks": 2}
    found = run_cost([*events, alone])
    assert (found.seconds, found.evaluation_seconds) == (27.0, 5.0)
    assert found.device_seconds == 2 * 27.0


def test_an_evaluation_before_the_first_step_is_no_start_up():
    before = {"event": "evaluated", "process": "a", "step": 0, "seconds": 1.5, "ranks": 2}
    found = run_cost([before, begin(0), steps(10, 20.0), END])
    assert (found.start_up_seconds, found.seconds, found.evaluation_seconds) == (2.5, 21.5, 1.5)


def test_nothing_has_cost_nothing():
    assert run_cost([]) == run_cost([{"event": "start"}, {"event": "end", "code": 1}]) == RunCost()


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=6),
)
def test_kept_and_lost_time_are_all_time(parts):
    """Attempts that begin where an earlier one had come, at the most."""
    events, last, total = [], 0, 0.0
    for place, (start, length) in enumerate(parts):
        first = min(start, last)
        events += [begin(first, str(place), ranks=1), steps(first + length, 2.0 * length)]
        last, total = first + length, total + 2.0 * length
    found = run_cost(events)
    assert found.seconds + found.lost_seconds == pytest.approx(total)
    assert found.seconds == pytest.approx(2.0 * found.steps)
    assert found.lost_seconds == pytest.approx(2.0 * found.lost_steps)


NEEDS = {
    "meta": (),
    "module_0": ("meta",),
    "module_1": ("meta",),
    "joined": ("module_0", "module_1"),
    "plain": (),
}
SECONDS = {"meta": 10.0, "module_0": 20.0, "module_1": 25.0, "joined": 5.0, "plain": 100.0}
COSTS = {
    name: RunCost(
        flops=2 * seconds,
        seconds=seconds,
        device_seconds=4 * seconds,
        memory_gib=seconds / 10,
        start_up_seconds=1.0,
    )
    for name, seconds in SECONDS.items()
}


def test_the_critical_path_is_the_longest_chain():
    assert longest_path(NEEDS, SECONDS, "joined") == (("meta", "module_1", "joined"), 40.0)
    assert longest_path(NEEDS, SECONDS, "plain") == (("plain",), 100.0)


def test_a_bill_has_what_the_node_needs_and_nothing_else():
    found = total_cost(NEEDS, COSTS, "joined")
    assert found.nodes == ("meta", "module_0", "module_1", "joined")
    assert (found.flops, found.device_seconds, found.critical_seconds) == (120.0, 240.0, 40.0)
    assert (found.memory_gib, found.start_up_seconds) == (2.5, 4.0)
    unknown = total_cost(NEEDS, {**COSTS, "meta": RunCost(flops=None)}, "joined")
    assert unknown.flops is None
    assert unknown.device_seconds == 200.0
    assert total_cost(NEEDS, {**COSTS, "meta": RunCost()}, "joined").flops == 100.0, (
        "not begun: nothing"
    )


def test_ledger_json_has_the_result_the_baselines_and_the_reference():
    planned = dict.fromkeys(NEEDS, 7.0)
    ledger = as_json("w", "joined", NEEDS, COSTS, planned, {"flops": 150.0})
    assert ledger["result"]["planned_flops"] == 28.0
    assert ledger["others"].keys() == {"plain"}
    assert ledger["others"]["plain"]["device_seconds"] == 400.0
    assert ledger["reference"] == {"flops": 150.0}
    assert ledger["nodes"]["module_1"]["seconds"] == 25.0
