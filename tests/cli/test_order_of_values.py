"""Recipe, file, command line: the later one is used, whatever kind of key it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quadriga.cli.entry import run
from quadriga.cli.resolve import resolve
from quadriga.config.provenance import COMMAND_LINE, Resolved
from quadriga.engine.run_config import RunConfig


def toml(folder: Path, text: str) -> Path:
    path = folder / "my.toml"
    path.write_text(text)
    return path


def test_an_argument_of_a_recipe_is_set_where_it_is_given(tmp_path: Path) -> None:
    file = toml(tmp_path, "train.epochs = 10\nschedule.warmup_epochs = 1\n")
    for epochs in (3, 50):  # 50 is the recipe's own default
        found = resolve("mae_digits", file, [f"epochs={epochs}"])
        assert found.config.train.epochs == epochs
        assert found.sources["train.epochs"] == COMMAND_LINE
        # What the recipe derives from its argument is the recipe's, so the file is the last word.
        assert dict(found.config.leaves())["schedule.warmup_epochs"] == 1
    assert resolve("mae_digits", file, []).config.train.epochs == 10
    assert resolve("mae_digits", None, ["epochs=3"]).sources["train.epochs"] == COMMAND_LINE
    assert resolve("mae_digits", file, ["train.steps=7"]).config.train.epochs is None


def test_a_folder_of_data_likewise(tmp_path: Path) -> None:
    file = toml(tmp_path, f'data.root = "{tmp_path}/a"\n')
    words = [f"root={tmp_path}/b"]
    assert resolve("mae_cifar10", file, words).config.data.root == tmp_path / "b"
    assert resolve("mae_cifar10", file, []).config.data.root == tmp_path / "a"


def test_an_argument_of_a_recipe_may_stand_in_the_file(tmp_path: Path) -> None:
    found = resolve("mae_digits", toml(tmp_path, "epochs = 2\n"), [])
    assert (found.config.train.epochs, found.sources["train.epochs"]) == (
        2,
        str(tmp_path / "my.toml"),
    )
    assert resolve("mae_digits", tmp_path / "my.toml", ["epochs=4"]).config.train.epochs == 4


def sizes(words: list[str]) -> dict[str, int]:
    leaves = dict(resolve("mae_digits", None, words).config.leaves())
    return {k.split(".")[0]: leaves[k] for k in leaves if k.endswith(".image_px")}


@pytest.mark.parametrize("key", ["model", "views", "data"])
def test_the_size_of_the_images_is_one_value(key: str) -> None:
    assert sizes([f"{key}.image_px=16"]) == {"model": 16, "views": 16, "data": 16}


def test_a_size_that_is_set_itself_does_not_follow() -> None:
    found = sizes(["model.image_px=16", "data.image_px=24"])
    assert found == {"model": 16, "views": 16, "data": 24}
    # Data of another kind may have no size: nothing is set that it does not have.
    assert sizes(["model.image_px=16", "data.kind=image_folder", "data.root=x"]) == {
        "model": 16,
        "views": 16,
    }
    assert sizes(["data.kind=shapes", "data.image_px=64"]) == {"model": 32, "views": 32, "data": 64}


def test_paths_are_stored_as_seen_from_where_they_were_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "list.txt").write_text("")
    found = resolve(
        "mae_cifar10",
        None,
        [
            "data.kind=image_list",
            "root=~/x/../pictures",
            "data.files=list.txt",
            "warm_start.path=w.st",
        ],
    ).config
    leaves = dict(found.leaves())
    assert leaves["data.root"] == str(tmp_path / "home" / "pictures")
    assert leaves["data.files"] == str(tmp_path / "list.txt")
    assert leaves["warm_start.path"] == str(tmp_path / "w.st")
    words = ["data.kind=image_list", "data.files=below.txt"]
    assert dict(resolve("mae_cifar10", None, words).config.leaves())["data.files"] == "below.txt"
    words = ["root=corpus", "data.files=a-*.txt", "vocabulary=v.txt"]
    leaves = dict(resolve("bert_mini", None, words).config.leaves())
    assert leaves["data.files"] == ["a-*.txt"]  # relative to the root
    assert leaves["data.vocabulary"] == str(tmp_path / "v.txt")


def test_a_saved_path_is_not_seen_from_elsewhere(tmp_path: Path) -> None:
    """A config that an older revision saved keeps its relative paths until they are overridden."""
    saved = resolve("mae_cifar10", None, [])
    old = saved.config.override({"data.root": "old/place"})
    text = Resolved(old, saved.sources).as_json()
    assert str(Resolved.from_json(RunConfig, text).config.data.root) == "old/place"
    moved = Resolved.from_json(RunConfig, text).override({"train.epochs": "2"}, "test")
    assert str(moved.config.data.root) == "old/place"
    moved = moved.override({"data.root": "new"}, "test")
    assert str(moved.config.data.root) == os.path.abspath("new")


def test_a_run_is_used_from_another_folder_without_its_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "corpus").mkdir(parents=True)
    there.mkdir()
    words = "the cat sat on a mat .".split()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (here / "words.txt").write_text("\n".join([*special, *words]) + "\n")
    text = "\n\n".join(f"the cat sat .\nthe {'mat ' * n}sat .\na cat ." for n in range(30))
    (here / "corpus" / "text.txt").write_text(text)
    monkeypatch.chdir(here)
    small = "width=16 depth=2 heads=2 mlp_width=32 max_positions=32 vocabulary_size=16".split()
    command = [
        "train",
        "bert_mini",
        "root=corpus",
        "vocabulary=words.txt",
        "data.test_fraction=0.3",
    ]
    command += [*(f"model.{word}" for word in small), "train.steps=2", "train.batch_size=4"]
    command += ["train.accumulate=1", "loader.workers=0", "evaluation.workers=0", "--ranks", "1"]
    command += ["schedule.warmup_epochs=0", "views.max_length=32", "train.device=cpu"]
    command += ["--work-dir", "run"]
    assert run(command) == 0, capsys.readouterr().err
    (here / "words.txt").unlink()
    monkeypatch.chdir(there)
    assert run(["eval", str(here / "run"), "held_out", "--device", "cpu"]) == 0, (
        capsys.readouterr().err
    )
