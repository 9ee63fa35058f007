"""Fine-tuning takes the encoder as it is, and is otherwise a run like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from errors import assert_command_refused
from pictures import write_classes
from quadriga.cli.entry import run
from quadriga.cli.finetune.source import values_from
from quadriga.cli.resolve import resolve
from quadriga.engine.logs.directory import RunDirectory
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig
from quadriga.weights import export_weights
from tiny import read_checkpoint, tiny_run

VIT = ViTConfig(image_px=16, patch_px=4, width=16, depth=2, heads=2)
NORMAL = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_pct": 1.0}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_classes(tmp_path / "images", ["cat", "dog", "owl"], 4)
    return tmp_path / "images"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "vit.safetensors"
    export_weights(VIT.build(), file, "timm")
    about = {"pretrained_cfg": NORMAL, "global_pool": "token", "num_heads": 2}
    file.with_suffix(".json").write_text(json.dumps(about))
    return file


def test_the_run_is_the_recipe_with_the_encoder_of_the_weights(weights: Path, images: Path) -> None:
    words = [f"data.root={images}", "epochs=3", "optim.layer_decay=0.5"]
    resolved = resolve("finetune_small", None, words, None, (values_from(weights), str(weights)))
    plain = resolve("finetune_small", None, words).config
    config = resolved.config
    learned = VIT.override({"positions": "learned", "drop_path": 0.1})
    changed = plain.override(
        {
            "name": "finetune_vit",
            "model": learned.as_dict(),
            "views.image_px": 16,
            "views.mean": (0.5, 0.5, 0.5),
            "views.std": (0.25, 0.25, 0.25),
            "views.test_crop_fraction": 1.0,
            "warm_start.path": str(weights),
            "warm_start.part": "encoder",
        }
    )
    assert config == changed
    assert (config.train.epochs, config.optim.layer_decay) == (3, 0.5)
    assert config.objective.as_dict()["classes"] == 3
    assert config.warm_start.strict
    assert resolved.sources["model.width"] == str(weights)
    assert resolved.sources["model.drop_path"] == "recipe finetune_small"


def test_a_dry_run_and_what_is_refused(
    weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.root={images}", "train.device=cpu", "--dry-run"]
    assert run(["finetune", str(weights), *words]) == 0
    assert "7.7 k trainable" in capsys.readouterr().out
    assert_command_refused(["finetune", tmp_path / "none", *words], capsys, tmp_path / "none")
    assert_command_refused(["finetune", weights, *words, "--recipe", "x"], capsys, "x")
    file = tmp_path / "resnet.safetensors"
    export_weights(ResNetConfig.from_dict({"depth": 18, "stem_width": 4}).build(), file, "timm")
    assert_command_refused(["finetune", file, *words], capsys, "finetune", file, "resnet")


@pytest.mark.long
def test_the_encoder_of_a_run_is_what_training_starts_from(images: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "mae", tmp_path / "tuned"
    words = ("checkpoint.every_steps=1", "views.mean=[0.4,0.5,0.6]")
    assert run(tiny_run(source, 1, *words)) == 0
    words = ("train.device=cpu", "loader.workers=0", "evaluation.workers=0", "train.batch_size=4")
    steps = ("train.steps=1", "optim.lr=0", "log.loggers=[]")
    command = ["finetune", str(source), f"data.root={images}", *words, *steps]
    assert run([*command, "--work-dir", str(folder)]) == 0
    config = RunDirectory(folder).read_config().config
    assert config.views.as_dict()["mean"] == [0.4, 0.5, 0.6]
    assert config.model.as_dict()["pool"] == "mean"
    before, after = read_checkpoint(source, 1), read_checkpoint(folder, 1)
    names = [name for name in before if name.startswith("objective.encoder.")]
    assert len(names) > 20
    for name in names:
        assert torch.equal(before[name], after[name]), name
    assert run(["eval", str(folder), "held_out"]) == 0
