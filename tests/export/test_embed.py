"""The features of a folder in a file are those of the encoder on each of its images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from errors import assert_command_refused
from pictures import write, write_classes
from quadriga.cli.entry import run
from quadriga.export.encoder import load_encoder
from quadriga.models.vit import ViTConfig
from quadriga.weights import export_weights
from tiny import tiny_run

VIT = ViTConfig(image_px=16, patch_px=8, width=64, depth=1, heads=1, positions="learned")
NORMAL = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    module, file = VIT.build(), tmp_path / "vit.safetensors"
    export_weights(module, file, "timm")
    about = {"pretrained_cfg": NORMAL, "global_pool": "token"}
    file.with_suffix(".json").write_text(json.dumps(about))
    write_classes(tmp_path / "images", ["cat", "dog"], 2)
    write(tmp_path / "images" / "cat" / "bad.jpg", b"nothing")
    write(tmp_path / "images" / "top.jpg", (tmp_path / "images/dog/000.jpg").read_bytes())
    return file


NAMES = ["cat/000.jpg", "cat/001.jpg", "dog/000.jpg", "dog/001.jpg", "top.jpg"]


def expected(weights: Path, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    encoder = load_encoder(weights)
    images = torch.stack([encoder.transform(weights.parent / "images" / name) for name in names])
    return encoder.features(images), encoder.patch_tokens(images)


def close(actual: object, reference: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(np.array(actual)), reference)


@pytest.mark.filterwarnings("ignore")
def test_numpy_and_parquet_hold_the_encoders_features(weights: Path, tmp_path: Path) -> None:
    features, patches = expected(weights, NAMES)
    words = ["embed", str(weights), str(tmp_path / "images"), "--patches", "--batch-size", "2"]
    assert run([*words, "--out", str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz") as found:
        assert found["names"].tolist() == NAMES
        assert found["classes"].tolist() == ["cat", "cat", "dog", "dog", ""]
        close(found["features"], features)
        close(found["patches"], patches)
        assert json.loads(str(found["about"]))["source"] == str(weights)
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run([*words, "--out", str(tmp_path / "a.parquet")]) == 0
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table["name"].to_pylist() == NAMES
    assert table["class"].to_pylist() == ["cat", "cat", "dog", "dog", ""]
    close(np.array(table["features"].to_pylist(), np.float32), features)
    close(np.array(table["patches"].to_pylist(), np.float32), patches)
    assert b"vit.safetensors" in table.schema.metadata[b"quadriga"]
    assert not [path.name for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.filterwarnings("ignore")
def test_a_list_with_labels(weights: Path, tmp_path: Path) -> None:
    listed = tmp_path / "images" / "list.txt"
    listed.write_text("top.jpg\tbird\ncat/001.jpg\tcat\n")
    assert run(["embed", str(weights), str(listed), "--out", str(tmp_path / "b.npz")]) == 0
    with np.load(tmp_path / "b.npz") as found:
        assert found["names"].tolist() == ["top.jpg", "cat/001.jpg"]
        assert found["classes"].tolist() == ["bird", "cat"]
        assert sorted(found.files) == ["about", "classes", "features", "names"]
        close(found["features"], expected(weights, found["names"].tolist())[0])


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_written_is_refused_before_anything_is_read(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(out: Path, *fragments: object) -> None:
        words = ["embed", weights, tmp_path / "images", "--out", out]
        assert_command_refused(words, capsys, *fragments)

    refused(tmp_path / "a.csv", "--out", ".npz", ".parquet")
    refused(tmp_path / "none" / "a.npz", "--out", tmp_path / "none")
    words = ["embed", weights, tmp_path / "photos", "--out", tmp_path / "c.npz"]
    assert_command_refused(words, capsys, tmp_path / "photos")
    (tmp_path / "a.npz").write_text("mine")
    refused(tmp_path / "a.npz", tmp_path / "a.npz", "--force")
    assert (tmp_path / "a.npz").read_text() == "mine"
    for image in (tmp_path / "images").rglob("*.jpg"):
        image.write_bytes(b"nothing")
    refused(tmp_path / "b.npz", "6")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith((".b", "b."))]


@pytest.mark.long
def test_a_run(weights: Path, tmp_path: Path) -> None:
    folder, images = tmp_path / "run", tmp_path / "images"
    assert run(tiny_run(folder, 2, "checkpoint.every_steps=1", "ema.decay=0.5")) == 0
    for average in ("raw", "ema"):
        out = tmp_path / f"{average}.npz"
        words = ["embed", str(folder), str(images), "--out", str(out)]
        assert run([*words, f"evaluation.weights={average}"]) == 0
        encoder = load_encoder(folder, weights=average)  # type: ignore[arg-type]
        batch = torch.stack([encoder.transform(images / name) for name in NAMES])
        with np.load(out) as found:
            close(found["features"], encoder.features(batch))
