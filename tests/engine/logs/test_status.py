"""What a run directory says of its run, in each state."""

from __future__ import annotations

import json

import pytest

from quadriga.config.provenance import Resolved
from quadriga.engine.checkpoint.folder import Manifest, checkpoint_path, write_manifest
from quadriga.engine.logs.times import FAILED, STOPPED, evaluated, note, read_times
from quadriga.engine.status import state_of
from quadriga.files import LOCK, is_locked, take_lock
from quadriga.recipes.mae import mae_digits

CONFIG = mae_digits().override(
    {"train.steps": 10, "train.epochs": "none", "evaluation.protocols": "knn"}
)


def begin(folder, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(Resolved.of(config, "test").as_json())
    note(folder, "begin", step=0, total_steps=10, batch_size=8, ranks=1)


def save(folder, step, size=3):
    path = checkpoint_path(folder / "checkpoints", step)
    path.mkdir(parents=True)
    (path / "a.safetensors").write_bytes(b"abc")
    files = {"a.safetensors": {"bytes": size, "sha256": "0"}}
    write_manifest(path, Manifest(2, step, "hash", 1, files))


def write_evaluation(folder, step, **metrics):
    (folder / "report").mkdir(exist_ok=True)
    result = {"protocol": "knn", "numbers": metrics, "pictures": {}, "details": {}}
    content = json.dumps({"step": step, "overrides": {}, "results": [result]})
    (folder / "report" / "evaluation.json").write_text(content)


def log(folder, step, **values):
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": step, "loss": 0.5, "eta_seconds": 60.0, **values}) + "\n")


def test_nothing_is_there(tmp_path):
    state = state_of(tmp_path / "absent", CONFIG, 10)
    assert (state.state, state.step, state.total_steps, state.metric) == ("waiting", 0, 10, None)


def test_a_run_is_running_while_its_lock_is_held(tmp_path):
    begin(tmp_path)
    save(tmp_path, 4)
    log(tmp_path, 6)
    with take_lock(tmp_path / LOCK):
        state = state_of(tmp_path, None)
        assert (state.state, state.step, state.total_steps) == ("running", 6, 10)
        assert state.eta_seconds == pytest.approx(60.0, abs=10.0)
        assert (state.metric, state.value) == ("loss", 0.5)
        assert take_lock(tmp_path / LOCK) is None
    state = state_of(tmp_path, None)
    assert (state.state, state.step, state.eta_seconds) == ("stopped", 4, None)


def test_whoever_looks_at_a_lock_does_not_keep_it(tmp_path):
    assert not is_locked(tmp_path / LOCK)
    with take_lock(tmp_path / LOCK):
        assert is_locked(tmp_path / LOCK)
    assert not is_locked(tmp_path / LOCK)
    with take_lock(tmp_path / LOCK) as again:
        assert again is not None


def test_a_run_is_finished_when_its_last_checkpoint_is_evaluated(tmp_path):
    begin(tmp_path)
    save(tmp_path, 10)
    assert state_of(tmp_path, None).state == "stopped"
    write_evaluation(tmp_path, 8, top1=70.0)
    assert state_of(tmp_path, None).state == "stopped"
    write_evaluation(tmp_path, 10, top1=71.5, top1_random=60.0)
    state = state_of(tmp_path, None)
    assert (state.state, state.step, state.metric, state.value) == (
        "finished",
        10,
        "knn.top1",
        71.5,
    )


def test_a_checkpoint_that_is_cut_short_is_none(tmp_path):
    begin(tmp_path, CONFIG.override({"evaluation.protocols": "[]"}))
    save(tmp_path, 5)
    save(tmp_path, 10, size=4)
    assert (state_of(tmp_path, None).state, state_of(tmp_path, None).step) == ("stopped", 5)


def test_a_failed_run_has_its_error_until_it_is_started_again(tmp_path):
    begin(tmp_path)
    note(tmp_path, "end", how=FAILED, code=2, error="the disk is full")
    state = state_of(tmp_path, None)
    assert (state.state, state.error) == ("failed", "the disk is full")
    note(tmp_path, "start")
    assert state_of(tmp_path, None).state == "stopped"
    note(tmp_path, "end", how=STOPPED, code=75)
    assert (state_of(tmp_path, None).state, state_of(tmp_path, None).error) == ("stopped", None)


def test_torn_lines_are_passed_over_and_evaluations_are_timed(tmp_path):
    with evaluated(tmp_path, 3, 2):
        pass
    with (tmp_path / "times.jsonl").open("a") as stream:
        stream.write('{"event": "st')
    (event,) = read_times(tmp_path)
    assert (event["event"], event["step"], event["ranks"]) == ("evaluated", 3, 2)
    assert 0 <= event["seconds"] < 5
    with pytest.raises(KeyError), evaluated(tmp_path, 4, 2):
        raise KeyError
    assert len(read_times(tmp_path)) == 1


def test_a_run_of_several_modules_is_told_by_the_accuracy_of_the_first(tmp_path):
    begin(tmp_path)
    save(tmp_path, 10)
    write_evaluation(
        tmp_path, 10, **{"loss": 4.0, "module_0.accuracy": 0.5, "module_1.accuracy": 0.75}
    )
    assert state_of(tmp_path, CONFIG).metric == "knn.module_0.accuracy"
