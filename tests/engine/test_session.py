"""Where a run starts: anew, from its own checkpoints, from another run's, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from errors import assert_says, refuses
from parallel_worker import tiny_config
from quadriga.config.provenance import Resolved
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import build_objective
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.evaluate import load_objective
from quadriga.engine.logs.console import Console
from quadriga.engine.run_config import RunConfig
from quadriga.engine.session import Request, run
from tiny import assert_bit_equal, read_checkpoint, read_metrics

WORDS = ["train.steps=4", "checkpoint.every_steps=2", "loader.workers=0"]
CONFIG = tiny_config(WORDS)


def train(
    work_dir: Path, config: RunConfig = CONFIG, resume: bool = False, path: Path | None = None
) -> str:
    """Run, and return what the log has gained."""
    log = work_dir / "log.txt"
    before = len(log.read_text()) if log.exists() else 0
    request = Request(work_dir, resume or path is not None, path)
    with Console() as console:
        run(Resolved.of(config, "test"), request, SINGLE, console)
    return log.read_text()[before:]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    work_dir = tmp_path_factory.mktemp("session") / "run"
    train(work_dir)
    return work_dir


@pytest.fixture
def half(finished: Path, tmp_path: Path) -> Path:
    """The run as it was after step 2 of 4."""
    work_dir = shutil.copytree(finished, tmp_path / "half")
    shutil.rmtree(work_dir / "checkpoints" / "step_00000004")
    return work_dir


def assert_same_run(one: Path, other: Path) -> None:
    assert_bit_equal(read_checkpoint(one, 4), read_checkpoint(other, 4))


def test_there_is_nothing_to_resume_at_first(tmp_path: Path, finished: Path) -> None:
    assert_says(train(tmp_path / "run", resume=True), "nothing", tmp_path / "run", "step 0")
    assert_same_run(tmp_path / "run", finished)


def test_a_run_goes_on_where_it_stopped(half: Path, finished: Path) -> None:
    assert_says(train(half, resume=True), "step 2 of 4")
    assert_same_run(half, finished)
    assert read_metrics(half) == read_metrics(finished)


def test_what_changes_no_number_may_change_on_the_way(half: Path, finished: Path) -> None:
    config = CONFIG.override({"loader.workers": 1, "log.every_steps": 3, "checkpoint.keep": 1})
    train(half, config, resume=True)
    assert_same_run(half, finished)
    assert [p.name for p in (half / "checkpoints").iterdir()] == ["step_00000004"]


@pytest.mark.parametrize("part", ["", "checkpoints/step_00000002"])
def test_a_run_starts_from_the_checkpoint_of_another(
    tmp_path: Path, half: Path, finished: Path, part: str
) -> None:
    said = train(tmp_path / "run", path=half / part)
    assert_says(said, "step 2 of 4")
    assert_same_run(tmp_path / "run", finished)


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path, half: Path) -> None:
    other = CONFIG.override({"optim.lr": 0.5})
    with refuses(half, "config"):
        train(tmp_path / "run", other, path=half)


def test_a_start_that_fails_leaves_the_directory_free(tmp_path: Path, half: Path) -> None:
    with refuses(tmp_path, "resumed"):
        train(tmp_path / "run", path=tmp_path)
    said = train(tmp_path / "run", CONFIG.override({"train.steps": 2}))
    assert "resumed" not in said


def test_an_unfinished_run_is_not_overwritten(half: Path) -> None:
    before = read_metrics(half)
    with refuses(half, "step_00000002", "4 steps", "--resume"):
        train(half)
    assert read_metrics(half) == before


def test_a_finished_run_stays(finished: Path) -> None:
    before = read_metrics(finished)
    assert_says(train(finished), "all 4 steps")
    assert read_metrics(finished) == before


def test_a_broken_loss_is_not_saved(tmp_path: Path) -> None:
    # The rate breaks the weights in the first step; the next line of the journal is the last.
    words = ["optim.lr=1e6", "optim.weight_decay=1e6", "optim.lr_batch=8", "log.every_steps=100"]
    config = tiny_config([*WORDS, *words])
    with refuses("nan", "step 2"):
        train(tmp_path / "run", config)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_objective_of_a_run_is_read_alone(finished: Path) -> None:
    objective, step, _ = load_objective(CONFIG, finished, SINGLE, Console(active=False))
    assert step == 4
    assert not any(module.training for module in objective.modules())
    stored = read_checkpoint(finished, 4)
    state = objective.state_dict()
    assert state
    for name, tensor in state.items():
        assert torch.equal(tensor, stored[f"objective.{name}"]), name
    fresh = build_objective(CONFIG, torch.device("cpu"), CONFIG.seed).state_dict()
    assert any(not torch.equal(tensor, fresh[name]) for name, tensor in state.items())


def test_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    with refuses(tmp_path, "checkpoint", "train"):
        load_objective(CONFIG, tmp_path, SINGLE, Console(active=False))


NOWHERE = CONFIG.override({"warm_start.path": "nowhere.safetensors"})


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    with refuses("nowhere.safetensors"):
        train(tmp_path / "runs" / "run", NOWHERE)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_start_leaves_what_was_there(tmp_path: Path, half: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "console.txt").write_text("started")
    with refuses("nowhere.safetensors"):
        train(tmp_path / "run", NOWHERE)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["console.txt"]
    before = sorted(half.rglob("*"))
    with refuses("--resume"):
        train(half)
    assert sorted(half.rglob("*")) == before


def test_a_run_that_fails_later_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise ValueError("later")

    monkeypatch.setattr(CheckpointStore, "save", fails)
    with refuses("later", error=ValueError):
        train(tmp_path / "run")
    assert (tmp_path / "run" / "config.json").is_file()
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size
