"""Which checkpoints stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_fakes import Tensors
from errors import assert_says
from quadriga.distributed.environment import SINGLE
from quadriga.engine.checkpoint.retention import Retention, best_step, to_remove
from quadriga.engine.checkpoint.store import CheckpointStore, list_checkpoints, step_of
from quadriga.engine.run_config import CheckpointConfig

STEPS = st.sets(st.integers(0, 500), max_size=20)


@given(STEPS, st.integers(1, 5), st.none() | st.integers(1, 50), st.none() | st.integers(0, 500))
def test_what_stays(steps: set[int], keep: int, every: int | None, best: int | None) -> None:
    gone = to_remove(sorted(steps), keep, every, best)
    newest = set(sorted(steps)[-keep:])
    wanted = {s for s in steps if s in newest or s == best or (every and s % every == 0)}
    assert set(gone) == steps - wanted
    assert len(gone) == len(set(gone))
    assert max(steps, default=-1) not in gone


@given(STEPS, st.integers(1, 5), st.none() | st.integers(1, 50), st.none() | st.integers(0, 500))
def test_removing_is_over_after_once(
    steps: set[int], keep: int, every: int | None, best: int | None
) -> None:
    left = steps - set(to_remove(sorted(steps), keep, every, best))
    assert to_remove(sorted(left), keep, every, best) == []


def test_the_earlier_of_equals_is_the_best() -> None:
    values = {3: 0.5, 1: 0.7, 2: 0.5, 4: 0.7}
    assert best_step(values, "lowest") == 2
    assert best_step(values, "highest") == 1
    assert best_step({}, "lowest") is None


def store_of(folder: Path, **changes: object) -> CheckpointStore:
    values = {"keep": 1, "keep_best": "linear_probe.top1", "best_is": "highest", **changes}
    return CheckpointStore(folder, SINGLE, CheckpointConfig.model_validate(values), "h")


def steps_in(folder: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(folder)]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_best_stays_over_resumptions(tmp_path: Path, asynchronous: bool) -> None:
    values = {10: 50.0, 20: 55.0, 30: 55.0, 40: float("nan"), 50: 54.0}
    for step, value in values.items():  # a store for each: the process is another every time
        with store_of(tmp_path, asynchronous=asynchronous) as store:
            store.save(step, Tensors(step))
            store.report(step, {"linear_probe.top1": value, "loss": 1.0})
    assert steps_in(tmp_path) == [50, 20]
    noted = json.loads((tmp_path / "best.json").read_text())
    assert (noted["metric"], noted["step"], noted["value"]) == ("linear_probe.top1", 20, 55.0)


def test_a_value_may_come_before_its_checkpoint(tmp_path: Path) -> None:
    with store_of(tmp_path) as store:
        for step, value in ((1, 3.0), (2, 9.0), (3, 4.0)):
            store.report(step, {"linear_probe.top1": value})
            if step != 2:  # the best of all has no checkpoint
                store.save(step, Tensors(step))
                store.wait()
        store.save(4, Tensors(4))
    assert steps_in(tmp_path) == [4, 3]


def test_every_so_many_steps_stay(tmp_path: Path) -> None:
    with store_of(tmp_path, keep_best=None, keep_every_steps=20) as store:
        for step in range(10, 60, 10):
            store.save(step, Tensors(step))
    assert steps_in(tmp_path) == [50, 40, 20]


def test_a_damaged_best_json_is_told_and_passed_over(tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text('{"metric": "linear_probe.top1"}')
    said: list[str] = []
    config = CheckpointConfig(keep=1, keep_best="linear_probe.top1")
    with CheckpointStore(tmp_path, SINGLE, config, "h", said.append) as store:
        store.save(1, Tensors(1.0))
        store.report(1, {"linear_probe.top1": 1.0})
    assert len(said) == 1
    assert_says(said[0], tmp_path / "best.json", "damaged")
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 1


def test_a_best_that_nothing_measures_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    config = CheckpointConfig(keep_best="linear_prob.top1")
    with CheckpointStore(tmp_path, SINGLE, config, "h", said.append) as store:
        store.save(1, Tensors(1.0))
    assert len(said) == 1
    assert_says(said[0], "checkpoint.keep_best", "linear_prob.top1")


def test_a_later_checkpoint_does_not_push_out_what_is_saved_now(tmp_path: Path) -> None:
    """Step 100 was passed over as damaged; the run goes on from 80 and makes 90."""
    with store_of(tmp_path, keep_best=None) as store:
        store.save(100, Tensors(1.0))
    with store_of(tmp_path, keep_best=None) as store:
        store.save(90, Tensors(1.0))
    assert steps_in(tmp_path) == [100, 90]


def test_values_of_a_history_that_is_left_are_forgotten(tmp_path: Path) -> None:
    """Back from step 30 to step 20: the old 30 is no reason to let the best of the new go."""
    with store_of(tmp_path, keep=2) as store:
        for step, value in ((20, 5.0), (30, 9.0)):
            path = store.save(step, Tensors(step))
            store.report(step, {"linear_probe.top1": value})
        store.wait()
        assert store.load(path.with_name("step_00000020"), Tensors(0.0)) == 20
        for step, value in ((30, 1.0), (40, 2.0), (50, 3.0)):
            store.save(step, Tensors(step))
            store.report(step, {"linear_probe.top1": value})
    assert steps_in(tmp_path) == [50, 40, 20]


def test_the_value_of_a_first_checkpoint_that_is_still_being_written(tmp_path: Path) -> None:
    """The folder comes with the first save, which may not have made it yet."""
    warnings: list[str] = []
    folder = tmp_path / "checkpoints"
    retention = Retention(folder, CheckpointConfig(keep_best="loss"), warnings.append)
    retention.report(2, {"loss": 1.0}, saving=2)
    assert warnings == []
    assert json.loads((folder / "best.json").read_text())["value"] == 1.0


@pytest.mark.parametrize(
    ("name", "metrics", "known"),
    [
        ("lost", {"loss": 1.0}, "loss"),
        ("knn.top2", {"knn.top1": 9.0, "knn.top5": 20.0, "other.top2": 1.0}, "knn.top1, knn.top5"),
    ],
)
def test_a_name_that_is_never_measured_is_told_at_once(
    tmp_path: Path, name: str, metrics: dict[str, float], known: str
) -> None:
    warnings: list[str] = []
    retention = Retention(tmp_path, CheckpointConfig(keep_best=name), warnings.append)
    retention.report(2, {"unrelated.value": 1.0} if "." in name else {}, saving=None)
    assert warnings == []
    for step in (2, 4):
        retention.report(step, metrics, saving=None)
    (warning,) = warnings
    assert_says(warning, "checkpoint.keep_best", name, known)
