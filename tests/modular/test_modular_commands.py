"""What commands say of hybrids, and of data without labels for a classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from incubations import hybrid_run, meta_run, train, whole
from PIL import Image
from safetensors.torch import load_file

from errors import assert_command_refused, assert_says
from quadriga.cli.entry import run
from quadriga.config.provenance import Resolved
from quadriga.engine.dry_run import dry_run
from quadriga.weights.layouts.model_stages import document
from tiny import assert_bit_equal, read_checkpoint


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    assert train(meta_run(steps=1), folder / "meta") == 0
    assert train(hybrid_run(folder / "meta", 0, steps=1), folder / "run") == 0
    return folder / "run"


@pytest.mark.parametrize("part", ["encoder", "all"])
@pytest.mark.parametrize("form", ["safetensors", "timm", "hf"])
def test_a_hybrid_is_assembled_before_it_is_exported(hybrid, tmp_path, capsys, form, part):
    output = tmp_path / ("o" if form == "hf" else "o.safetensors")
    words = ["checkpoint", "export", hybrid, output, "--to", form, "--part", part]
    assert_command_refused(words, capsys, "modular.kind=assembly")


@pytest.mark.parametrize("form", ["whole", "stages"])
def test_a_meta_model_under_the_names_of_a_wrapper(hybrid, tmp_path, form):
    """As DistributedDataParallel, or a model around the encoder, saves it."""
    timm = tmp_path / "meta.safetensors"
    words = ["checkpoint", "export", str(hybrid.with_name("meta")), str(timm)]
    assert run([*words, "--to", "timm", "--part", "all"]) == 0
    tensors = load_file(timm)
    held = document(tensors, (1, 1)) if form == "stages" else {"state_dict": tensors}
    if form == "stages":
        held["model_stages"] = [wrapped(stage) for stage in held["model_stages"]]
    held = {
        name: wrapped(group) if name != "model_stages" else group for name, group in held.items()
    }
    torch.save(held, tmp_path / "meta.pth")
    assert train(hybrid_run(tmp_path / "meta.pth", 0, steps=1), tmp_path / "run") == 0
    assert_bit_equal(read_checkpoint(tmp_path / "run", 1), read_checkpoint(hybrid, 1))


def wrapped(tensors):
    return {f"module.backbone.{name}": tensor for name, tensor in tensors.items()}


def test_a_hybrid_is_neither_planned_nor_pipelined(hybrid, tmp_path, capsys):
    config = hybrid.with_name("run.json")
    assert_command_refused(["plan", config], capsys, "modular.kind=hybrid")
    words = ["train", config, "--work-dir", tmp_path / "x", "executor.kind=pipeline"]
    assert_command_refused(words, capsys, "data_parallel", "modular.kind=hybrid")


def activations(config):
    rows = dict(dry_run(config, 1))
    return rows["memory per rank"].partition("activations ")[2]


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"recompute": "full"}])
def test_a_rehearsal_counts_the_activations_of_the_hybrid(changes):
    words = {f"train__{name}": value for name, value in changes.items()}
    last = activations(hybrid_run("runs/meta", 1, **words))
    assert last != activations(whole(**words))
    assert last != activations(hybrid_run("runs/meta", 0, **words))


def test_a_classifier_needs_labels(tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(9):
            pixels = np.full((20, 20, 3), 20 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{number}.png")
    data = {"kind": "image_folder", "root": str(tmp_path / "images"), "labelled": False}
    for classes in ("none", 10):
        config = whole(objective__classes=classes).override({"data": data})
        path = tmp_path / "config.json"
        path.write_text(Resolved.of(config, "test").as_json())
        for more in ([], ["--dry-run"]):
            words = ["train", path, "--work-dir", tmp_path / "run", *more]
            assert_command_refused(words, capsys, "supervised", "labels", "data.kind=image_folder")


def test_micro_batches_that_are_mixed_have_two_samples(tmp_path, capsys):
    views = {"kind": "supervised_views", "image_px": 16, "crop": "padded"}
    for accumulate, mixup, code in ((8, 0.8, 2), (5, 0.8, 2), (4, 0.8, 0), (8, 0.0, 0)):
        chosen = {**views, "mixup": mixup, "cutmix": 0.0}
        config = whole(1, train__accumulate=accumulate).override({"views": chosen})
        assert train(config, tmp_path / f"{accumulate}_{mixup}") == code
        if code:
            assert_says(capsys.readouterr().err, f"2 x {accumulate}", "views.mixup")
