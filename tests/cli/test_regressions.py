"""Mistakes that once ended in a traceback, a lost evaluation or a silent restart."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from errors import assert_command_refused, assert_refused
from quadriga.cli.entry import run
from quadriga.engine.logs.results import read_records
from ranks import quadriga
from tiny import read_metrics, tiny_run

KNN = 'evaluation.protocols=[{"kind":"knn","neighbours":3}]'


def test_what_cannot_be_evaluated_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat").mkdir()
    for i in range(12):
        Image.new("RGB", (20, 20), (i, 30, 200)).save(tmp_path / "flat" / f"{i}.png")
    words = ["data.kind=image_list", f"data.root={tmp_path / 'flat'}", KNN, "loader.workers=0"]
    command = [w for w in tiny_run(tmp_path / "run", 2, *words) if w != "data.image_px=16"]
    assert_command_refused(command, capsys, "knn", "labelled training")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_too_many_neighbours_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [KNN.replace("3", "5000")]
    words = tiny_run(tmp_path / "runs" / "run", 2, *words)
    assert_command_refused(words, capsys, "knn.neighbours", "5000")
    assert list(tmp_path.iterdir()) == [], "a failed start leaves nothing"


def test_a_missing_evaluation_is_made_up_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 2, KNN)) == 0
    results = work_dir / "report" / "evaluations.jsonl"
    (expected,) = read_records(results.parent)
    for damage in (lambda: results.unlink(), lambda: results.write_text('{"st')):
        damage()
        capsys.readouterr()
        assert run(tiny_run(work_dir, 2, KNN, "--resume")) == 0
        assert "finished" in capsys.readouterr().out
        (found,) = read_records(results.parent)
        assert dataclasses.replace(found, time=expected.time) == expected


def test_a_saved_config_outlives_new_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 1)) == 0
    saved = json.loads((work_dir / "config.json").read_text())
    del saved["config"]["optim"]["eps"], saved["sources"]["optim.eps"]
    older = tmp_path / "older.json"
    older.write_text(json.dumps(saved))
    capsys.readouterr()
    assert run(["train", str(older), "seed=3", "--print-config"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("optim.eps"))
    assert line.split()[-1] == "default"
    assert run(["train", "mae_digits", "--config", str(older), "--print-config"]) == 0


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_file_names_that_are_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "images"
    for i in range(20):
        folder = root / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        name = os.fsdecode(b"caf\xe9%d.png" % i)
        Image.new("RGB", (20, 20), (12 * i, 30, 200)).save(folder / name)
    broken = root / "a" / os.fsdecode(b"caf\xe94.png")
    broken.write_bytes(b"no image")
    words = ["data.kind=image_folder", f"data.root={root}", "loader.workers=0"]
    words += ["loader.max_unreadable_fraction=0.5"]
    command = [w for w in tiny_run(tmp_path / "run", 6, *words) if w != "data.image_px=16"]
    assert run(command) == 0
    assert "caf" in (tmp_path / "run" / "log.txt").read_text()
    assert "error" not in capsys.readouterr().err


def test_a_number_that_cannot_be_a_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        Image.new("RGB", (20, 20), (i, 30, 200)).save(tmp_path / f"{i}.png")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{i}.png\t{40_000_000_000 + i}\n" for i in range(4)))
    words = ["data.kind=image_list", f"data.root={tmp_path}", f"data.files={listed}"]
    command = [w for w in tiny_run(tmp_path / "run", 2, *words) if w != "data.image_px=16"]
    assert_command_refused(command, capsys, listed, "classes", "0")


def test_files_that_are_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 1)) == 0
    (work_dir / "config.json").write_bytes(b"\xff\xfe\x00")
    for words in (["eval", str(work_dir)], ["train", str(work_dir / "config.json")]):
        assert_command_refused(words, capsys, work_dir / "config.json", "text")


def test_one_unit_of_a_length_clears_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train.steps=5", "checkpoint.every_steps=2", "schedule.warmup_steps=1"]
    assert run(["train", "mae_digits", *words, "--print-config"]) == 0
    shown = capsys.readouterr().out
    for line in ("train.epochs = none", "checkpoint.every_epochs = none", "warmup_epochs = 0.0"):
        assert line in shown


def test_going_on_from_an_older_checkpoint_sets_the_newer_ones_aside(tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    words = ["checkpoint.every_steps=2", "checkpoint.keep=9"]
    assert run(tiny_run(work_dir, 6, *words)) == 0
    before = read_metrics(work_dir)
    start = work_dir / "checkpoints" / "step_00000002"
    assert run(tiny_run(work_dir, 6, *words, "--resume", str(start))) == 0
    assert read_metrics(work_dir) == before
    aside = work_dir / "checkpoints" / "superseded"
    assert sorted(p.name for p in aside.iterdir()) == ["step_00000004", "step_00000006"]


def test_newer_checkpoints_that_cannot_be_set_aside_are_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny_run(tmp_path / "run", 2, "checkpoint.every_steps=1", "loader.workers=0")
    assert run(words) == 0
    capsys.readouterr()
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "superseded").write_text("in the way")
    words = [*words, "--resume", str(checkpoints / "step_00000001")]
    assert_command_refused(words, capsys, "File exists")


@pytest.mark.long
def test_a_run_starts_its_own_ranks(tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    done = subprocess.run(
        quadriga(*tiny_run(work_dir, 2, "train.ranks=2")),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 ranks x 1 micro-batch x 4" in done.stdout
    assert json.loads((work_dir / "environment.json").read_text())["world_size"] == 2


def test_the_error_of_started_ranks_is_one_line(tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    (work_dir / "thesis").mkdir(parents=True)
    done = subprocess.run(
        quadriga(*tiny_run(work_dir, 2, "train.ranks=2")),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert_refused(done, work_dir, "--work-dir")


def test_the_data_may_move_but_not_change_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(20):
        folder = tmp_path / "here" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (12 * i, 30, 200)).save(folder / f"{i}.png")
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    def command(root: str, *more: str) -> list[str]:
        own = ["data.kind=image_folder", f"data.root={tmp_path / root}", "loader.workers=0"]
        words = tiny_run(tmp_path / "run", 4, *own, "checkpoint.every_steps=2", *more)
        return [word for word in words if word != "data.image_px=16"]

    assert run(command("here")) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000004")
    assert run(command("there", "--resume")) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000004")
    Image.new("RGB", (20, 20)).save(tmp_path / "there" / "a" / "more.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "there" / "a" / "and_more.png")
    capsys.readouterr()
    assert_command_refused(command("there", "--resume"), capsys, "samples", "20", "--work-dir")
