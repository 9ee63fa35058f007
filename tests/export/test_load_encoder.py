"""An encoder that is read back computes what the trained one does, whatever it is read from."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from errors import refuses
from pictures import noise
from quadriga.cli.entry import run
from quadriga.config.base import construct
from quadriga.contracts import ObjectiveConfig
from quadriga.data.images.record import ImageRecord
from quadriga.data.views.crops import ImageViewsConfig
from quadriga.engine.logs.directory import RunDirectory
from quadriga.export.arguments import hf_arguments
from quadriga.export.encoder import ImageEncoder, load_encoder
from quadriga.export.subject import keyed_images
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig
from quadriga.weights import export_weights
from tiny import read_checkpoint, tiny_run

VIT = ViTConfig(image_px=16, patch_px=4, width=64, depth=2, heads=1, positions="learned")
VIEWS = ImageViewsConfig(image_px=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
NAMED = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "resample": 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "run"
    words = ("checkpoint.every_steps=1", "ema.decay=0.5", "views.mean=[0.4,0.5,0.6]")
    assert run(tiny_run(folder, 2, *words)) == 0
    return folder


def disturbed(module: Any) -> Any:
    """The module with no tensor of zeros or ones, where a mistake could hide."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.linspace(0, 1, tensor.numel()).view(tensor.shape)
    return module.eval()


def images(side: int = 16) -> Tensor:
    return keyed_images(ViTConfig(image_px=side, patch_px=4), batch=3)


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_the_encoder_of_a_run(trained: Path, weights: Any) -> None:
    config = RunDirectory(trained).read_config().config
    expected = config.objective.build(config.model).eval()
    stored = read_checkpoint(trained, 2)
    state = {
        name: stored.get(f"ema.{name}" if weights == "ema" else "", stored[f"objective.{name}"])
        for name in expected.state_dict()
    }
    expected.load_state_dict(state)
    for source in (trained, str(trained / "checkpoints" / "step_00000002")):
        encoder = load_encoder(source, weights=weights)
        assert not any(module.training for module in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        found = encoder.features(images())
        assert torch.equal(found, expected.features(images()))
        tokens = encoder.patch_tokens(images())
        assert torch.equal(tokens, expected.encoder(images())[:, 1:])
        assert torch.equal(tokens.mean(1), found)  # of this run, pool is mean


def test_images_of_all_kinds_become_the_same_input(trained: Path, tmp_path: Path) -> None:
    pixels, file = noise(30, 40), tmp_path / "image.png"
    Image.fromarray(pixels).save(file)
    views = RunDirectory(trained).read_config().config.views.build("test")
    sample = views.sample(ImageRecord(pixels, None, "image"), 0)
    batch = {"image": torch.from_numpy(sample["image"])[None]}
    expected = views.batch(batch)["image"][0]
    transform = load_encoder(trained).transform
    data = io.BytesIO(file.read_bytes()).getvalue()
    for image in (file, str(file), data, pixels, Image.fromarray(pixels)):
        assert torch.equal(transform(image), expected)
    file.write_bytes(data[:60])
    with refuses(file):
        transform(file)
    with refuses(tmp_path / "none.png"):
        transform(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.safetensors", "--to safetensors"),
        ("a.safetensors", "--to safetensors --part all"),
        ("a.safetensors", "--to timm"),
        ("a", "--to hf"),
        ("a", "--to hf --part all"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_exports_of_a_run(trained: Path, tmp_path: Path, name: str, words: str) -> None:
    target = tmp_path / name
    assert run(["checkpoint", "export", str(trained), str(target), *words.split()]) == 0
    encoder, expected = load_encoder(target), load_encoder(trained)
    assert encoder.transform.views == expected.transform.views
    torch.testing.assert_close(encoder.features(images()), expected.features(images()))
    torch.testing.assert_close(encoder.patch_tokens(images()), expected.patch_tokens(images()))


def test_a_file_of_timm_names_tells_its_architecture(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    for changes in ({}, {"registers": 2}, {"class_token": False, "pool": "mean"}):
        config = VIT.override({"layer_scale": 0.5, "qkv_bias": False, **changes})
        module = disturbed(config.build())
        export_weights(module, file, "timm")
        encoder = load_encoder(file)
        assert encoder.network.config == config.override({"layer_scale": 1.0})
        torch.testing.assert_close(encoder.features(images()), module.features(images()))
        with refuses("views=", file):
            encoder.transform  # noqa: B018
        assert load_encoder(file, views=VIEWS).transform.views == VIEWS


@pytest.mark.parametrize("depth", [18, 50])
def test_a_residual_network(tmp_path: Path, depth: int) -> None:
    config = ResNetConfig.from_dict({"depth": depth, "stem_width": 8, "stem": "small"})
    module = disturbed(config.build())
    file = tmp_path / "resnet.pth"
    export_weights(module, file, "timm")
    cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_pct": 0.9}
    file.with_suffix(".json").write_text(json.dumps({"pretrained_cfg": cfg}))
    encoder = load_encoder(file)
    assert encoder.network.config == config
    assert torch.equal(encoder.features(images()), module.features(images()))
    maps = encoder.patch_tokens(images())
    torch.testing.assert_close(maps.mean(1), encoder.features(images()))
    views = encoder.transform.views
    assert views == VIEWS.override({"image_px": 224, "test_crop_fraction": 0.9})


def test_a_folder_of_hugging_face(tmp_path: Path) -> None:
    config = VIT.override({"heads": 2, "norm_eps": 1e-12})
    module = disturbed(config.build())
    export_weights(module, tmp_path / "model.safetensors", "hf")
    with refuses("config.json", "model="):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hf_arguments(config)))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(NAMED))
    encoder = load_encoder(tmp_path)
    assert encoder.network.config == config
    assert torch.equal(encoder.features(images()), module.features(images()))
    assert encoder.transform.views == VIEWS.override({"test_crop_fraction": 1.0})


def test_of_a_teacher_and_a_student_the_evaluated_one_is_read() -> None:
    small = {"prototypes": 20, "hidden_width": 32, "bottleneck_width": 8}
    config = construct(ObjectiveConfig, {"kind": "dino", **small})  # type: ignore[type-abstract]
    objective: Any = config.build(VIT.override({"pool": "mean"}))
    disturbed(objective.teacher_encoder)
    encoder = ImageEncoder(objective, VIEWS)
    tokens = encoder.patch_tokens(images())
    torch.testing.assert_close(tokens.mean(1), encoder.features(images()))
    assert not torch.equal(tokens, objective.encoder(images())[:, 1:])


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with refuses(tmp_path / "none"):
        load_encoder(tmp_path / "none")
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with refuses("model=", tmp_path / "a.safetensors"):
        load_encoder(tmp_path / "a.safetensors")
    with refuses("weights", "ema"):
        load_encoder(tmp_path / "a.safetensors", weights="ema")
    with refuses("features"):
        ImageEncoder(nn.Linear(2, 2), VIEWS)
    (tmp_path / "a.json").write_text("[" * 3000)
    with refuses(tmp_path / "a.json"):
        load_encoder(tmp_path / "a.safetensors")
