"""Checkpoints exist whole or not at all, and say what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quadriga.contracts import Batch, Executor, StepOutput
from quadriga.distributed.environment import SINGLE
from quadriga.engine.checkpoint import (
    CheckpointStore,
    InvalidCheckpoint,
    list_checkpoints,
    newest_valid,
    verify,
)
from quadriga.errors import UserError


class Tensors(Executor):
    """An executor that is nothing but its state."""

    def __init__(self, value: float, shape: tuple[int, ...] = (3, 4)) -> None:
        self.state = {
            "objective.weight": torch.full(shape, value),
            "objective.flag": torch.tensor(True),
            "optimizer.weight.step": torch.tensor(value),
            "optimizer.weight.half": torch.full((5,), value, dtype=torch.bfloat16),
        }

    def run(self, batches: Iterator[Batch], steps: range) -> Iterator[StepOutput]:
        yield from ()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", SINGLE, keep=2, config_hash="h")


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
        (truncate, "bytes instead of"),
        (flip, "does not match its checksum"),
        (Path.unlink, "is missing"),
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
    assert reason in said[0]
    assert "step_00000002" in said[0]


@pytest.mark.parametrize("text", [None, "{", '{"format": 1}'])
def test_a_checkpoint_without_a_whole_manifest_does_not_exist(
    store: CheckpointStore, tmp_path: Path, text: str | None
) -> None:
    path = store.save(1, Tensors(1.0))
    manifest = path / "manifest.json"
    if text is None:
        manifest.unlink()
    else:
        manifest.write_text(text)
    with pytest.raises(InvalidCheckpoint, match=r"manifest\.json"):
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


def test_a_save_that_fails_leaves_the_previous_checkpoint(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = store.save(1, Tensors(1.0))

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quadriga.engine.checkpoint.save", full)
    with pytest.raises(UserError, match=r"step_00000002 could not be written: .*No space left"):
        store.save(2, Tensors(2.0))
    assert newest_valid(tmp_path / "checkpoints", lambda text: None) == good
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_tensors_of_another_model_are_named(store: CheckpointStore) -> None:
    path = store.save(1, Tensors(1.0))
    with pytest.raises(UserError, match=r"objective\.weight has shape \[3, 4\] instead of \[2\]"):
        store.load(path, Tensors(1.0, shape=(2,)))
    other = Tensors(1.0)
    other.state["objective.extra"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"tensor objective\.extra: the checkpoint lacks it"):
        store.load(path, other)


def test_the_manifest_names_every_file(store: CheckpointStore) -> None:
    path = store.save(3, Tensors(1.0))
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert set(manifest["files"]) == {p.name for p in path.glob("*.safetensors")}
