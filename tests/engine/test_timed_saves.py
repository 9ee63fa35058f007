"""Checkpoints by the clock: few by default, the same on every rank, and of no effect on the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import assert_says
from quadriga.cli.entry import run
from quadriga.distributed.environment import SINGLE, DistEnv
from quadriga.engine.build import build_on_meta
from quadriga.engine.checkpoint import store
from quadriga.engine.checkpoint.store import CheckpointStore, list_checkpoints
from quadriga.engine.dry_run import checkpoint_bytes
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import CheckpointConfig
from quadriga.engine.run_plan import make_plan, segments
from quadriga.recipes.deit import deit_small
from quadriga.recipes.mae import mae_vit_small
from ranks import run_quadriga
from tiny import assert_same_run, read_checkpoint, tiny_run

ALWAYS = ("checkpoint.every_minutes=1e-9", "checkpoint.asynchronous=false")
"""Every step is due."""


def steps_in(work_dir: Path) -> list[int]:
    return [int(p.name.removeprefix("step_")) for p in list_checkpoints(work_dir / "checkpoints")]


@pytest.mark.parametrize("recipe", [mae_vit_small, deit_small])
def test_a_short_epoch_plans_no_checkpoint(recipe: object) -> None:
    """README's "your own images" on 800 pictures: an epoch has three steps."""
    config = recipe().override({"train.batch_size": 256, "train.accumulate": 4})  # type: ignore[operator]
    plan = make_plan(config, 727, 1)
    planned = [segment.steps.stop for segment in segments(plan, 0) if segment.save]
    assert planned == [plan.total_steps]
    assert config.checkpoint.keep == 2


def test_the_dry_run_tells_the_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tiny_run(tmp_path / "run", 1, "loader.workers=0", "ema.decay=0.9")
    assert run([*words, "checkpoint.keep=3", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert run(words) == 0
    saved = sum(t.numel() * t.element_size() for t in read_checkpoint(tmp_path / "run", 1).values())
    config = RunDirectory(tmp_path / "run").read_config().config
    counted = checkpoint_bytes(config, build_on_meta(config))
    assert 0 <= saved - counted <= 64, "all but the executor's own numbers"
    (row,) = [line for line in said.splitlines() if line.startswith("checkpoints ")]
    assert_says(row, f"{counted / 1024:.1f} KiB", "10 min", "3", f"{3 * counted / 1024:.1f} KiB")


@pytest.mark.parametrize("layout", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_a_save_changes_no_result_and_all_ranks_make_it(tmp_path: Path, layout: str) -> None:
    words = ("loader.workers=0", f"train.parallel={layout}", "model.drop_path=0.3")
    for name, own in (("timed", ALWAYS), ("plain", ("checkpoint.every_minutes=none",))):
        done = run_quadriga(*tiny_run(tmp_path / name, 6, *words, *own), world_size=2)
        assert done.returncode == 0, done.stderr
    assert steps_in(tmp_path / "timed") == [6, 5]
    assert steps_in(tmp_path / "plain") == [6]
    assert_same_run(tmp_path / "timed", tmp_path / "plain", 6)


def test_the_best_is_chosen_among_evaluated_states(tmp_path: Path) -> None:
    words = (
        'evaluation.protocols=[{"kind":"knn","neighbours":3}]',
        "evaluation.train_samples=40",
        "evaluation.test_samples=40",
        "evaluation.workers=0",
        f"evaluation.every_epochs={2 * 8 / 1437}",
        "checkpoint.keep_best=knn.top1",
        "checkpoint.keep=9",
        "loader.workers=0",
    )
    assert run(tiny_run(tmp_path / "run", 5, *words, *ALWAYS)) == 0
    assert steps_in(tmp_path / "run") == [5, 4, 2]


def test_the_clock_of_rank_0_counts_from_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: now[0])
    first = CheckpointStore(tmp_path, SINGLE, CheckpointConfig(), "h")
    steps = CheckpointStore(tmp_path, SINGLE, CheckpointConfig(every_steps=3), "h")
    for seconds, due in ((599.0, False), (600.0, True), (6000.0, True)):
        now[0] = seconds
        assert (first.is_due(), steps.is_due()) == (due, False)
    other = CheckpointStore(tmp_path, SINGLE, CheckpointConfig(), "h")
    other._env = DistEnv(1, 2, 1, 2, SINGLE.device)
    now[0] = 12_000.0
    assert not other.is_due()
