"""Damage that is found on the disk: passed over with its reason, and saving goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint_fakes import Tensors
from errors import assert_says, refuses
from quadriga.distributed.environment import SINGLE
from quadriga.engine.checkpoint.store import CheckpointStore, list_checkpoints, newest_valid, verify
from quadriga.engine.run_config import CheckpointConfig


def store_of(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, SINGLE, CheckpointConfig(keep=2, keep_best="loss"), "h")


def shard(checkpoint: Path) -> Path:
    return next(checkpoint.glob("*.safetensors"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "truncated shard": (lambda path: halve(shard(path)), "bytes"),
    "bit flip in a shard": (lambda path: flip(shard(path)), "checksum"),
    "missing shard": (lambda path: shard(path).unlink(), "missing"),
    "empty shard": (lambda path: emptied(shard(path)), "0 bytes"),
    "folder instead of a shard": (lambda path: folder_instead(shard(path)), "missing"),
    "truncated manifest": (lambda path: halve(path / "manifest.json"), "manifest.json"),
    "bit flip in the manifest": (lambda path: flip(path / "manifest.json"), "manifest.json"),
    "empty manifest": (lambda path: emptied(path / "manifest.json"), "manifest.json"),
    "missing manifest": (lambda path: (path / "manifest.json").unlink(), "no manifest.json"),
    "empty checkpoint": (lambda path: [p.unlink() for p in path.iterdir()], "no manifest.json"),
    "shard of another": (
        lambda path: shutil.copy(shard(path), path / "shard_00001_000.safetensors"),
        "shard_00001_000.safetensors",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_made_anew(tmp_path: Path, name: str) -> None:
    damage, reason = DAMAGE[name]
    with store_of(tmp_path) as store:
        store.save(1, Tensors(1.0))
        damaged = store.save(2, Tensors(2.0))
    damage(damaged)
    said: list[str] = []
    found = newest_valid(tmp_path, said.append)
    assert found == tmp_path / "step_00000001"
    assert len(said) == 1
    assert_says(said[0], damaged, reason)
    with store_of(tmp_path) as store:
        assert store.load(found, Tensors(0.0)) == 1
        store.save(2, Tensors(2.0))
    assert verify(damaged).step == 2
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000001"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def stale_folder(name: str) -> Callable[[Path], None]:
    def leave(folder: Path) -> None:
        (folder / name).mkdir()
        (folder / name / "shard_00000_000.safetensors").write_text("half")

    return leave


def stale_file(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("half") and None


STALE = {
    "a partial checkpoint": stale_folder(".step_00000005.partial"),
    "a partial one of the same step": stale_folder(".step_00000002.partial"),
    "a half removed one": stale_folder(".step_00000000.removed"),
    "a half removed old one of a step": stale_folder("step_00000001.replaced"),
    "half of best.json": stale_file(".best.json.partial"),
}


@pytest.mark.parametrize("name", STALE)
def test_what_killed_processes_left_is_ignored_and_cleared(tmp_path: Path, name: str) -> None:
    with store_of(tmp_path) as store:
        first = store.save(1, Tensors(1.0))
    STALE[name](tmp_path)
    assert list_checkpoints(tmp_path) == [first]
    with store_of(tmp_path) as store:
        store.save(2, Tensors(2.0))
        store.report(2, {"loss": 1.0})
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["best.json", "step_00000001", "step_00000002"]
    assert newest_valid(tmp_path, print) == tmp_path / "step_00000002"


def test_a_replaced_checkpoint_counts_until_the_new_one_is_there(tmp_path: Path) -> None:
    with store_of(tmp_path) as store:
        path = store.save(1, Tensors(1.0))
    aside = path.rename(tmp_path / "step_00000001.replaced")
    assert newest_valid(tmp_path, print) == aside
    with store_of(tmp_path) as store:
        assert store.load(aside, Tensors(0.0)) == 1
        store.save(2, Tensors(2.0))
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000001"]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("kind", ["file in its place", "folder without rights"])
def test_an_unwritable_folder(tmp_path: Path, kind: str, asynchronous: bool) -> None:
    folder = tmp_path / "run" / "checkpoints"
    if kind == "file in its place":
        folder.parent.mkdir()
        folder.write_text("")
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.mkdir(parents=True, mode=0o500)
    config = CheckpointConfig(asynchronous=asynchronous)
    with (
        refuses("step_00000001", "--work-dir"),
        CheckpointStore(folder, SINGLE, config, "h") as store,
    ):
        store.save(1, Tensors(1.0))
