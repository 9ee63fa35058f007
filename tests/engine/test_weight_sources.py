"""What lies at a path: runs, checkpoints, files of any layout, and what is none of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from errors import refuses
from quadriga.engine.initial_weights import check_source, read_source


def test_files_are_read_under_their_own_names(tmp_path: Path) -> None:
    stage = {"norm.bias": torch.ones(2), "blocks.0.norm1.bias": torch.zeros(2)}
    torch.save({"model_stages": [stage], "quadriga": {"index": 0}}, tmp_path / "a.pth")
    found = read_source(tmp_path / "a.pth", "modular.meta")
    assert (found.config, found.notes, len(found.stages)) == (None, {"index": 0}, 1)
    assert set(found.tensors) == set(stage)
    save_file({"norm.bias": torch.ones(2)}, tmp_path / "b.safetensors", {"model": "x"})
    found = read_source(tmp_path / "b.safetensors", "modular.meta")
    assert (found.stages, found.notes) == ((), {"model": "x"})


def test_the_folder_of_a_published_model(tmp_path: Path) -> None:
    save_file({"norm.bias": torch.ones(2)}, tmp_path / "model.safetensors")
    assert set(read_source(tmp_path, "warm_start.path").tensors) == {"norm.bias"}


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("nowhere", ("nowhere",)),
        ("notes.txt", ("end in",)),
        ("empty", ("empty", "checkpoint")),
        ("torn.pth", ("torn.pth", "torch")),
        ("odd.pth", ("odd.pth", "epoch")),
    ],
)
def test_what_is_none(name: str, fragments: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    torch.save({"epoch": 3}, tmp_path / "odd.pth")
    whole = (tmp_path / "odd.pth").read_bytes()
    (tmp_path / "torn.pth").write_bytes(whole[: len(whole) // 2])
    with refuses("modular.meta", *fragments):
        read_source(tmp_path / name, "modular.meta")
    if not name.endswith(".pth"):
        with refuses("modular.meta", *fragments):
            check_source(tmp_path / name, "modular.meta")


def test_a_damaged_config_beside_a_checkpoint_is_told(tmp_path: Path) -> None:
    from quadriga.engine.initial_weights import _config_beside

    folder = tmp_path / "checkpoints" / "step_00000001"
    assert _config_beside(folder) is None
    (tmp_path / "config.json").write_text(json.dumps({"config": {"name": "x"}}))
    assert _config_beside(folder) == {"name": "x"}
    (tmp_path / "config.json").write_text("{")
    with refuses(tmp_path / "config.json"):
        _config_beside(folder)
