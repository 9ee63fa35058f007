"""A trained classifier in the layouts of timm and Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from errors import refuses
from quadriga.engine.build import build_objective
from quadriga.engine.run_config import RunConfig
from quadriga.export import huggingface, timm
from quadriga.export import subject as export_subject
from quadriga.export.subject import Subject, greatest_difference, keyed_images
from quadriga.recipes.deit import deit_digits
from quadriga.recipes.mae import mae_digits
from quadriga.weights import load_weights

CLASSES = 7


def supervised(**changes: Any) -> RunConfig:
    model = {"width": 16, "depth": 2, "heads": 2, "patch_px": 8}
    values = {f"model.{name}": value for name, value in {**model, **changes}.items()}
    return deit_digits().override({**values, "objective.classes": CLASSES})


def disturbed(config: RunConfig) -> Subject:
    objective = build_objective(config, torch.device("cpu"), 3)
    with torch.no_grad():
        for tensor in objective.state_dict().values():
            tensor += 0.1 * torch.linspace(-1, 1, tensor.numel()).view(tensor.shape)
    return Subject(config=config, objective=objective.eval(), part="all", step=1, weights="raw")


def test_timm_reads_the_classifier(tmp_path: Path) -> None:
    form, config = timm.TimmFormat(), supervised(pool="mean", layer_scale=0.1)
    form.check(config, "all")
    subject, target = disturbed(config), tmp_path / "x.safetensors"
    form.write(subject, target)
    assert form.verify(subject, target).passed
    assert json.loads(target.with_suffix(".json").read_text())["arguments"]["num_classes"] == 7
    with torch.no_grad():
        subject.objective.state_dict()["head.bias"].add_(1)
    assert not form.verify(subject, target).passed


@pytest.mark.parametrize("bias", [True, False])
def test_transformers_computes_the_logits(tmp_path: Path, bias: bool) -> None:
    form, config = huggingface.HuggingFaceFormat(), supervised(qkv_bias=bias)
    form.check(config, "all")
    subject, folder = disturbed(config), tmp_path / "x"
    form.write(subject, folder)
    assert form.verify(subject, folder).passed
    described = json.loads((folder / "config.json").read_text())
    assert described["architectures"] == ["ViTForImageClassification"]
    assert len(described["id2label"]) == CLASSES
    images = keyed_images(subject.vit.config)
    expected = export_subject.logits(subject.objective, images)
    again = export_subject.read_classifier_back(subject, folder / "model.safetensors", "hf")
    assert greatest_difference([(again, expected)]) < 1e-6
    with torch.no_grad():
        subject.objective.state_dict()["head.weight"].add_(1)
    assert not form.verify(subject, folder).passed


def test_a_classifier_is_left_out_where_there_is_none(tmp_path: Path) -> None:
    config = supervised()
    subject, folder = disturbed(config), tmp_path / "x"
    huggingface.HuggingFaceFormat().write(subject, folder)
    encoder = config.model.build()
    pixels = mae_digits().override({"model": config.model.as_dict()})
    for module in (encoder, build_objective(pixels, torch.device("cpu"), 0)):
        report = load_weights(module, folder / "model.safetensors", strict=False)
        assert set(report.skipped) == {"classifier.weight", "classifier.bias"}


def test_what_the_classes_cannot_express() -> None:
    with refuses("hf", "model.pool=mean", "timm"):
        huggingface.HuggingFaceFormat().check(supervised(pool="mean"), "all")
    for form in (huggingface.HuggingFaceFormat(), timm.TimmFormat()):
        form.check(supervised(pool="mean"), "encoder")
    with refuses("--part", "encoder", "objective.kind=mae", "all", "--to hf"):
        timm.TimmFormat().check(mae_digits(), "all")
