"""``quadriga checkpoint``: what it prints is what the files hold."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errors import assert_command_refused, assert_says
from quadriga.cli.entry import run
from quadriga.engine.checkpoint import folder
from quadriga.engine.checkpoint.store import read_manifest
from tiny import read_checkpoint, tiny_run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("checkpoints") / "run"
    assert run(tiny_run(work_dir, 4, "checkpoint.every_steps=2")) == 0
    return work_dir


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def said(words: list[Any], capsys: Capture) -> str:
    capsys.readouterr()
    assert run(["checkpoint", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(words: list[Any], capsys: Capture, *fragments: object) -> None:
    assert_command_refused(["checkpoint", *words], capsys, *fragments)


def test_inspect_counts_what_the_shards_hold(trained: Path, capsys: Capture) -> None:
    described = json.loads(said(["inspect", trained, "--json", "--tensors"], capsys))
    tensors = read_checkpoint(trained, 4)
    manifest = read_manifest(trained / "checkpoints" / "step_00000004")
    assert described["step"] == 4
    assert described["config_hash"] == manifest.config_hash
    assert described["tensors"] == [
        {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype)[len("torch.") :]}
        for name, tensor in sorted(tensors.items())
    ]
    assert sum(part["bytes"] for part in described["parts"].values()) == sum(
        tensor.numel() * tensor.element_size() for tensor in tensors.values()
    )
    for name, part in described["parts"].items():
        own = [tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")]
        assert part["tensors"] == len(own)
        assert part["elements"] == sum(tensor.numel() for tensor in own)
        assert part["dtypes"] == {"int64" if name == "executor" else "float32": len(own)}
    moments = [t.numel() for name, t in tensors.items() if name.endswith(".exp_avg")]
    assert described["trainable_parameters"] == sum(moments)


def test_inspect_for_people(trained: Path, capsys: Capture) -> None:
    text = said(["inspect", trained / "checkpoints" / "step_00000002"], capsys)
    assert "step                  2\n" in text
    assert "objective" in text
    assert "encoder.norm" not in text
    text = said(["inspect", trained, "--tensors", "objective.*.norm.*"], capsys)
    listed = [line.split() for line in text.splitlines() if line.startswith("objective.")]
    assert [words[0] for words in listed] == [
        "objective.decoder.norm.bias",
        "objective.decoder.norm.weight",
        "objective.encoder.norm.bias",
        "objective.encoder.norm.weight",
    ]
    assert listed[0][1:] == ["[16]", "float32"]


def test_inspect_reads_no_tensor(copy: Path, capsys: Capture) -> None:
    before = said(["inspect", copy, "--tensors"], capsys)
    shard = next((copy / "checkpoints" / "step_00000004").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of the values, which only verify looks at
    shard.write_bytes(bytes(data))
    assert said(["inspect", copy, "--tensors"], capsys) == before


def test_unknown_tensors_and_paths(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    for words, *fragments in (
        ([trained, "--tensors", "objective.encoder.nrm"], "objective.encoder.norm"),
        ([trained, "--tensors", "*nothing*"], "executor.*, objective.*, optimizer.*"),
        ([tmp_path / "absent"], tmp_path / "absent", "run"),
        ([tmp_path], tmp_path, "no checkpoint", "run"),
    ):
        refused(["inspect", *words], capsys, *fragments)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "bytes"),
        (Path.unlink, "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[::-1]), "checksum"),
        (lambda path: (path.parent / "manifest.json").unlink(), "manifest.json"),
    ],
)
def test_verify_names_the_damaged(
    damage: Callable[[Path], Any], reason: str, copy: Path, capsys: Capture
) -> None:
    text = said(["verify", copy, copy / "checkpoints" / "step_00000002"], capsys)
    assert [line.split()[1] for line in text.splitlines()] == ["OK", "OK", "OK", "checked,"]
    damage(next((copy / "checkpoints" / "step_00000002").glob("*.safetensors")))
    assert run(["checkpoint", "verify", str(copy)]) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert_says(first, "step_00000002", "damaged", reason)
    assert "step_00000004  OK" in second
    assert last == "2 checked, 1 damaged"


def test_verify_names_the_file_that_cannot_be_read(
    trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folder, "sha256_of", unreadable)
    (shard,) = (trained / "checkpoints" / "step_00000004").glob("*.safetensors")
    assert run(["checkpoint", "verify", str(trained)]) == 1
    assert_says(capsys.readouterr().out, shard.name, "Input/output error")


def test_verify_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    refused(["verify", tmp_path / "absent"], capsys, tmp_path / "absent")


def test_damaged_headers(copy: Path, capsys: Capture) -> None:
    for step in (copy / "checkpoints").iterdir():
        shard = next(step.glob("*.safetensors"))
        shard.write_bytes(b"\xff" * 100)
    refused(["inspect", copy], capsys, copy, "headers")
