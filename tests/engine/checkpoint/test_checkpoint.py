"""Checkpoints exist whole or not at all, and say what is wrong with them."""

from __future__ import annotations

import json
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save

from checkpoint_fakes import Tensors
from errors import assert_says, refuses
from quadriga.distributed.environment import SINGLE
from quadriga.engine.checkpoint.folder import sha256_of
from quadriga.engine.checkpoint.store import (
    CheckpointStore,
    InvalidCheckpoint,
    list_checkpoints,
    newest_valid,
    read_manifest,
    verify,
)
from quadriga.engine.checkpoint.write import StagedFile
from quadriga.engine.run_config import CheckpointConfig


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    config = CheckpointConfig(keep=2, asynchronous=False)
    return CheckpointStore(tmp_path / "checkpoints", SINGLE, config, "h")


def fail_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let the disk be full when the checkpoints of these steps are written."""
    write = StagedFile.write

    def write_if_there_is_room(file: StagedFile, folder: Path) -> dict[str, object]:
        if any(f"step_{step:08d}" in folder.name for step in steps):
            raise OSError(28, "No space left on device")
        return write(file, folder)

    monkeypatch.setattr(StagedFile, "write", write_if_there_is_room)


def test_what_is_saved_is_what_is_loaded(store: CheckpointStore) -> None:
    path = store.save(7, Tensors(2.5))
    other = Tensors(0.0)
    assert store.load(path, other) == 7
    for name, tensor in Tensors(2.5).state.items():
        assert torch.equal(other.state[name], tensor)
        assert other.state[name].dtype == tensor.dtype


def test_retention_keeps_the_newest(store: CheckpointStore, tmp_path: Path) -> None:
    for step in (9, 10, 100):
        store.save(step, Tensors(step))
    names = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step_00000100", "step_00000010"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "bytes"),
        (flip, "checksum"),
        (Path.unlink, "missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(
    store: CheckpointStore, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    good, bad = store.save(1, Tensors(1.0)), store.save(2, Tensors(2.0))
    damage(next(bad.glob("*.safetensors")))
    said: list[str] = []
    assert newest_valid(tmp_path / "checkpoints", said.append) == good
    assert len(said) == 1
    assert_says(said[0], "step_00000002", "shard_00000_000.safetensors", reason)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"format": 1}'])
def test_a_checkpoint_without_a_whole_manifest_does_not_exist(
    store: CheckpointStore, tmp_path: Path, text: str | None
) -> None:
    path = store.save(1, Tensors(1.0))
    manifest = path / "manifest.json"
    if text is None:
        manifest.unlink()
    else:
        manifest.write_text(text)
    with refuses("manifest.json", error=InvalidCheckpoint):
        verify(path)
    assert newest_valid(tmp_path / "checkpoints", lambda text: None) is None


def test_leftovers_of_a_killed_save_are_ignored_and_cleared(
    store: CheckpointStore, tmp_path: Path
) -> None:
    stale = tmp_path / "checkpoints" / ".step_00000005.partial"
    stale.mkdir(parents=True)
    (stale / "shard").write_text("half")
    assert list_checkpoints(tmp_path / "checkpoints") == []
    store.save(6, Tensors(1.0))
    assert not stale.exists()


def test_a_leftover_that_cannot_be_removed_is_no_reason_not_to_save(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system a folder stays as long as another process reads a file of it."""
    folder = tmp_path / "checkpoints"
    (folder / ".step_00000005.removed").mkdir(parents=True)
    (folder / ".step_00000004.partial").mkdir()
    rmtree = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if "step_00000006" in path.name:
            rmtree(path, ignore_errors=ignore_errors)
        elif not ignore_errors:
            raise OSError(39, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", busy)
    (folder / ".step_00000006.partial").mkdir()
    store.save(6, Tensors(1.0))
    assert [path.name for path in list_checkpoints(folder)] == ["step_00000006"]


def test_the_newest_before_a_step_is_found(store: CheckpointStore, tmp_path: Path) -> None:
    older = store.save(3, Tensors(1.0))
    store.save(6, Tensors(2.0))
    for step, expected in ((2, None), (3, older), (5, older)):
        assert newest_valid(tmp_path / "checkpoints", print, up_to=step) == expected


def test_a_save_that_fails_leaves_the_previous_checkpoint(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = store.save(1, Tensors(1.0))

    fail_at(monkeypatch, 2)
    with refuses("step_00000002", "No space left", "--work-dir", "--resume"):
        store.save(2, Tensors(2.0))
    assert newest_valid(tmp_path / "checkpoints", lambda text: None) == good
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_tensors_of_another_model_are_named(store: CheckpointStore) -> None:
    path = store.save(1, Tensors(1.0))
    with refuses("objective.weight", "[3, 4]", "[2]"):
        store.load(path, Tensors(1.0, shape=(2,)))
    other = Tensors(1.0)
    other.state["objective.extra"] = torch.zeros(1)
    with refuses("objective.extra"):
        store.load(path, other)


def test_the_manifest_names_every_file(store: CheckpointStore) -> None:
    path = store.save(3, Tensors(1.0))
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert set(manifest["files"]) == {p.name for p in path.glob("*.safetensors")}


def test_what_the_manifest_says_is_protected_as_well(tmp_path: Path) -> None:
    """No single flipped bit of the manifest goes unnoticed."""
    config = CheckpointConfig(asynchronous=False)
    store = CheckpointStore(tmp_path, SINGLE, config, "h", extra={"layout": "fsdp"})
    path = store.save(3, Tensors(1.0))
    manifest = path / "manifest.json"
    whole = manifest.read_bytes()
    assert verify(path).extra == {"layout": "fsdp"}
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        manifest.write_bytes(bytes(damaged))
        try:
            assert verify(path) == read_manifest(path)
        except InvalidCheckpoint:
            continue
        # Bits that change the white space between the values alone.
        assert json.loads(damaged) == json.loads(whole)


def test_a_shard_of_another_checkpoint_is_noticed(store: CheckpointStore) -> None:
    path = store.save(3, Tensors(1.0))
    (path / "shard_00009_000.safetensors").write_bytes(b"")
    with refuses("shard_00009_000.safetensors", error=InvalidCheckpoint):
        verify(path)


def test_checkpoints_of_format_1_are_read(store: CheckpointStore, tmp_path: Path) -> None:
    """As earlier versions wrote them: torch's files, no checksum of the manifest."""
    path = tmp_path / "checkpoints" / "step_00000009"
    path.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
        save(Tensors(2.5).state, storage_writer=writer, no_dist=True)
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)}
        for p in path.glob("*.safetensors")
    }
    manifest = {"format": 1, "step": 9, "config_hash": "h", "world_size": 1, "files": files}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert verify(path).step == 9
    other = Tensors(0.0)
    assert store.load(path, other) == 9
    for name, tensor in Tensors(2.5).state.items():
        assert torch.equal(other.state[name], tensor)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_state_of_many_files(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Tensors that fill several files, one of them larger than a file is meant to be."""
    monkeypatch.setattr("quadriga.engine.checkpoint.write.FILE_BYTES", 1024)
    monkeypatch.setattr("quadriga.engine.checkpoint.write.PIECE_BYTES", 100)
    state = {f"objective.{i}": torch.full((13 * i,), i, dtype=torch.float32) for i in range(40)}
    saved, loaded = Tensors(0.0), Tensors(0.0)
    saved.state = {name: tensor.clone() for name, tensor in state.items()}
    path = store.save(1, saved)
    assert len(verify(path, threads).files) > 10
    loaded.state = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    store.load(path, loaded)
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in state.items())
    flip(path / "shard_00000_007.safetensors")
    with refuses("shard_00000_007.safetensors", "checksum", error=InvalidCheckpoint):
        verify(path, threads)


def test_the_state_of_the_call_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training changes the tensors while they are written: what is written is the copy."""
    changed = threading.Event()
    write = StagedFile.write

    def write_late(file: StagedFile, folder: Path) -> dict[str, object]:
        assert changed.wait(30)
        return write(file, folder)

    monkeypatch.setattr(StagedFile, "write", write_late)
    executor, other = Tensors(2.0), Tensors(0.0)
    with CheckpointStore(tmp_path, SINGLE, CheckpointConfig(), "h") as store:
        path = store.save(1, executor)
        executor.state["objective.weight"].fill_(9.0)
        changed.set()
        store.wait()
        store.load(path, other)
    assert torch.equal(other.state["objective.weight"], torch.full((3, 4), 2.0))


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is slower than training: the saves stay in order, none mixes with another."""
    write = StagedFile.write

    def write_slowly(file: StagedFile, folder: Path) -> dict[str, object]:
        time.sleep(0.2)
        return write(file, folder)

    monkeypatch.setattr(StagedFile, "write", write_slowly)
    with CheckpointStore(tmp_path, SINGLE, CheckpointConfig(keep=9), "h") as store:
        store.save(1, Tensors(1))
        assert store.take_stall() < 0.2
        assert list_checkpoints(tmp_path) == []
        store.save(2, Tensors(2))
        assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000001"]
        assert store.take_stall() > 0.1
        store.save(3, Tensors(3))
        store.wait()
        for path in list_checkpoints(tmp_path):
            read = Tensors(0)
            assert store.load(path, read) == read.state["optimizer.weight.step"]


def test_a_background_save_that_fails_is_told_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 2)
    store = CheckpointStore(tmp_path, SINGLE, CheckpointConfig(), "h")
    store.save(1, Tensors(1.0))
    store.save(2, Tensors(2.0))
    with refuses("step_00000002", "No space left", "--work-dir", "--resume"):
        store.save(3, Tensors(3.0))
    store.save(4, Tensors(4.0))  # told once
    store.wait(final=True)
    store.close()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000004", "step_00000001"]


def test_leaving_the_context_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 1)
    store = CheckpointStore(tmp_path, SINGLE, CheckpointConfig(), "h")
    with refuses("No space left"), store:
        store.save(1, Tensors(1.0))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_training_may_go_on_without_a_checkpoint_but_not_end_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    said: list[str] = []
    config = CheckpointConfig(on_failure="continue", asynchronous=asynchronous)
    fail_at(monkeypatch, 2, 4)
    store = CheckpointStore(tmp_path, SINGLE, config, "h", said.append)
    for step in (1, 2, 3):
        store.save(step, Tensors(step))
    store.wait(final=True)  # the last one is there: no matter that step 2 is not
    assert len(said) == 1
    assert_says(said[0], "step_00000002", "No space left", "checkpoint.on_failure", "continue")
    store.save(4, Tensors(4))
    store.wait()
    assert len(said) == 2
    with refuses("step_00000004", "No space left", "--work-dir", "--resume"):
        store.wait(final=True)
    store.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]


def test_a_state_of_another_form_is_staged_anew(store: CheckpointStore) -> None:
    store.save(1, Tensors(1.0))
    path = store.save(2, Tensors(2.0, shape=(5, 5)))
    other = Tensors(0.0, shape=(5, 5))
    store.load(path, other)
    assert torch.equal(other.state["objective.weight"], torch.full((5, 5), 2.0))


def test_the_moving_average_alone_is_read(store: CheckpointStore) -> None:
    module = torch.nn.Linear(2, 1)
    executor = Tensors(1.0)
    executor.state = {
        "objective.weight": torch.full((1, 2), 1.0),
        "objective.bias": torch.full((1,), 2.0),
        "ema.weight": torch.full((1, 2), 3.0),
    }
    module.bias.requires_grad_(False)  # not trained, so not averaged
    assert store.load_objective(store.save(5, executor), module, "ema") == 5
    assert torch.equal(module.weight, torch.full((1, 2), 3.0))
    assert torch.equal(module.bias, torch.full((1,), 2.0))
    module.bias.requires_grad_(True)
    with refuses("ema.bias"):
        store.load_objective(store._folder / "step_00000005", module, "ema")


@pytest.mark.gpu
def test_a_state_on_the_gpu_is_copied_before_training_goes_on(tmp_path: Path) -> None:
    executor, other = Tensors(2.0), Tensors(0.0)
    executor.state = {name: tensor.cuda() for name, tensor in executor.state.items()}
    other.state = {name: tensor.cuda() for name, tensor in other.state.items()}
    with CheckpointStore(tmp_path, SINGLE, CheckpointConfig(), "h") as store:
        for step in (1, 2):  # the second time into memory that is used again
            executor.state["objective.weight"].fill_(step)
            path = store.save(step, executor)
            executor.state["objective.weight"].fill_(9.0)
        store.wait()
        store.load(path, other)
    assert torch.equal(other.state["objective.weight"].cpu(), torch.full((3, 4), 2.0))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_lies_beside_a_checkpoint_stops_nothing(tmp_path: Path, asynchronous: bool) -> None:
    """The hooks see whole checkpoints and reported metrics; what they raise is a warning."""
    said: list[str] = []
    seen: list[object] = []

    def on_saved(checkpoint: Path) -> None:
        seen.append(verify(checkpoint).step)
        if seen[-1] == 2:
            raise OSError("no room beside it")

    def on_reported(step: int, metrics: Mapping[str, float]) -> None:
        seen.append((step, dict(metrics)))
        raise OSError("no room in the log")

    config = CheckpointConfig(asynchronous=asynchronous)
    hooks = {"on_saved": on_saved, "on_reported": on_reported}
    with CheckpointStore(tmp_path, SINGLE, config, "h", said.append, **hooks) as store:  # type: ignore[arg-type]
        for step in (1, 2):
            store.save(step, Tensors(step))
            store.wait()
        store.report(2, {"loss": 3.0})
    assert seen == [1, 2, (2, {"loss": 3.0})]
    assert len(said) == 2
    assert "step_00000002" in said[0]
    assert "no room beside it" in said[0]
    assert "no room in the log" in said[1]
