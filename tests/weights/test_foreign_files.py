"""Weight files as training code of others writes them: nested, prefixed, several models in one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errors import assert_says, refuses
from quadriga.methods.mae import MAE, MAEConfig
from quadriga.models.vit import ViT, ViTConfig
from quadriga.weights import export_weights, load_weights
from quadriga.weights.files import read_tensors

SMALL = ViTConfig(image_px=12, patch_px=4, width=16, depth=2, heads=2)


def filled(seed: int) -> ViT:
    model = SMALL.build()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.full_like(tensor, seed + len(name) / 100))
    return model


def state(seed: int, layout: str, folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a model under a layout's names."""
    path = folder / f"{seed}.safetensors"
    export_weights(filled(seed), path, layout)
    return {prefix + name: tensor for name, tensor in read_tensors(path).items()}


def of_group(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, **values}


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("layout", ["quadriga", "timm", "hf"])
@pytest.mark.parametrize(
    "prefix",
    ["module.", "backbone.", "encoder.", "module.backbone.", "model.encoder.", "_orig_mod.module."],
)
def test_names_under_a_prefix(prefix: str, layout: str, tmp_path: Path) -> None:
    head = {"module.projection.weight": torch.ones(2)}
    torch.save({**state(1, layout, tmp_path, prefix), **head}, tmp_path / "w.pth")
    model = filled(2)
    report = load_weights(model, tmp_path / "w.pth", strict=False)
    assert_same(model, filled(1))
    if not (layout == "quadriga" and prefix == "encoder."):  # this project's own prefix
        assert_says(str(report), prefix.removesuffix("."), "module.projection.weight")


@pytest.mark.parametrize("layout", ["quadriga", "timm", "hf"])
def test_groups_within_groups(layout: str, tmp_path: Path) -> None:
    own = state(1, layout, tmp_path)
    for number, (content, taken) in enumerate(
        [
            ({"state_dict": own}, "state_dict"),
            ({"state_dict": {"model": own}}, "state_dict.model"),
            (
                {"model": {"state_dict": state(1, layout, tmp_path, "module.")}},
                "model.state_dict.module",
            ),
            ({"network": {"weights": own}}, "network.weights"),
        ]
    ):
        torch.save(of_group(content), tmp_path / f"{number}.pth")
        model = filled(2)
        report = load_weights(model, tmp_path / f"{number}.pth")
        assert_same(model, filled(1))
        assert_says(str(report), taken)


@pytest.mark.parametrize("layout", ["quadriga", "timm", "hf"])
def test_the_teacher_is_taken_and_said(layout: str, tmp_path: Path) -> None:
    student = state(1, layout, tmp_path, "module.backbone.")
    teacher = state(3, layout, tmp_path, "backbone.")
    torch.save(of_group({"student": student, "teacher": teacher}), tmp_path / "dino.pth")
    flat = {f"student.{n}": t for n, t in student.items()}
    flat |= {f"teacher.{n}": t for n, t in teacher.items()}
    torch.save(flat, tmp_path / "flat.pth")
    for name in ("dino.pth", "flat.pth"):
        model = filled(2)
        report = load_weights(model, tmp_path / name)
        assert_same(model, filled(3))
        assert_says(str(report), "teacher.backbone", "left out")


def test_two_models_of_which_none_is_better(tmp_path: Path) -> None:
    both = state(1, "timm", tmp_path, "left.") | state(3, "timm", tmp_path, "right.")
    torch.save(both, tmp_path / "two.pth")
    with refuses(tmp_path / "two.pth", "left.", "right.", "alone"):
        load_weights(filled(2), tmp_path / "two.pth")


def test_a_group_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content["model"] = content["rest"] = content
    torch.save(content, tmp_path / "round.pth")
    with refuses(tmp_path / "round.pth", "no tensors"):
        read_tensors(tmp_path / "round.pth")


def objective(width: int) -> MAE:
    method = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)
    return method.build(SMALL.override({"width": width, "depth": 3}))


def test_every_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    export_weights(objective(16), tmp_path / "w.safetensors")
    with refuses("encoder.positions", "(10, 16)", "(10, 32)", "strict=False") as caught:
        load_weights(objective(32), tmp_path / "w.safetensors")
    said = str(caught.value)
    assert_says(said, "3 x encoder.blocks.*.mlp.hidden.weight", "decoder.embed.weight")
    assert_says(said, "encoder.patch_projection.weight", "encoder.class_token")


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"image_px": 30}, ("image_px", "28 and 32")),
        ({"image_px": 3}, ("image_px", "nearest is 4")),
        ({"heads": 5}, ("heads", "4 and 8")),
        ({"width": 18, "heads": 2}, ("width", "16 and 20")),
    ],
)
def test_the_nearest_legal_sizes_are_named(
    values: dict[str, int], fragments: tuple[str, ...]
) -> None:
    with refuses(*fragments):
        SMALL.override(values)
