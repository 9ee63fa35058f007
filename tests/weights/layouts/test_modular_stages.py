"""The published modular layout against a plain reading of timm's vision transformer."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from errors import refuses
from quadriga.methods.mae import MAEConfig
from quadriga.methods.supervised import Supervised, SupervisedConfig
from quadriga.models.vit import ViTConfig
from quadriga.weights import export_weights, load_weights
from quadriga.weights.files import read_tensors, read_weights
from quadriga.weights.layouts.model_stages import (
    cut_stages,
    depths_of,
    digest,
    document,
    foreign_names,
    join_stages,
    own_names,
)
from tiny import assert_bit_equal

CLASSES = 7


def model_of(depth: int = 3, plain: bool = False, image_px: int = 16) -> ViTConfig:
    """A tiny model; `plain`: without query, key and value biases, as ViT-H."""
    return ViTConfig(
        image_px=image_px,
        patch_px=4,
        width=8,
        depth=depth,
        heads=2,
        positions="learned",
        qkv_bias=not plain,
        norm_eps=1e-5 if plain else 1e-6,
    )


def supervised(model: ViTConfig, classes: int = CLASSES) -> Supervised:
    objective = SupervisedConfig(classes=classes).build(model)
    objective.initialise(3)
    with torch.no_grad():  # nothing that is zero at first stays so
        for name, parameter in objective.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.linspace(-0.3, 0.5, parameter.numel()).view_as(parameter))
    return objective.eval()


def logits(flat: dict[str, Tensor], images: Tensor, heads: int, eps: float) -> Tensor:
    """Timm's vision transformer, written from its names alone."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], flat[f"{name}.weight"], flat[f"{name}.bias"], eps
        )

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, flat[f"{name}.weight"], flat.get(f"{name}.bias"))

    kernel = flat["patch_embed.proj.weight"]
    x = functional.conv2d(images, kernel, flat["patch_embed.proj.bias"], stride=kernel.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([flat["cls_token"].expand(len(x), -1, -1), x], dim=1) + flat["pos_embed"]
    depth = len({name.split(".")[1] for name in flat if name.startswith("blocks.")})
    for block in range(depth):
        before = f"blocks.{block}"
        batch, tokens, width = x.shape
        qkv = linear(norm(x, f"{before}.norm1"), f"{before}.attn.qkv")
        qkv = qkv.reshape(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-2, -1) * (width // heads) ** -0.5
        mixed = (scores.softmax(dim=-1) @ qkv[2]).transpose(1, 2).reshape(x.shape)
        x = x + linear(mixed, f"{before}.attn.proj")
        hidden = functional.gelu(linear(norm(x, f"{before}.norm2"), f"{before}.mlp.fc1"))
        x = x + linear(hidden, f"{before}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


def stages_of(objective: Supervised, depths: tuple[int, ...]) -> list[dict[str, Tensor]]:
    flat = foreign_names(objective.state_dict(), objective.encoder.config)
    return [dict(stage) for stage in cut_stages(flat, depths)]


@pytest.mark.parametrize("plain", [False, True])
def test_a_published_file_gives_its_logits(plain: bool, tmp_path: Path) -> None:
    """Stages alone, read into another objective; the sum of both halves is an oracle's."""
    objective = supervised(model_of(plain=plain))
    torch.save({"model_stages": stages_of(objective, (1, 2))}, tmp_path / "vit.pth")
    again = SupervisedConfig(classes=CLASSES).build(model_of(plain=plain)).eval()
    again.initialise(4)
    assert load_weights(again, tmp_path / "vit.pth").complete
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).sin().view(2, 3, 16, 16)
    flat = read_tensors(tmp_path / "vit.pth")
    expected = logits(flat, images, heads=2, eps=1e-5 if plain else 1e-6)
    with torch.no_grad():
        torch.testing.assert_close(again.scores(images), expected, rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_cutting_and_joining_are_inverses(depths: list[int]) -> None:
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "norm.bias", "head.weight"]
    names += [f"blocks.{i}.attn.qkv.weight" for i in range(sum(depths))]
    whole = {name: torch.tensor(float(i)) for i, name in enumerate(names)}
    stages = cut_stages(whole, depths)
    assert depths_of(stages, "it") == tuple(depths)
    assert_bit_equal(join_stages(stages, "it"), whole)
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(stages[0])
    assert {"norm.bias", "head.weight"} <= set(stages[-1])
    content = document(whole, depths)
    assert len(content["model"]) == 2 * len(whole)


def test_names_there_and_back() -> None:
    objective = supervised(model_of())
    own = objective.state_dict()
    named = foreign_names(own, objective.encoder.config)
    assert named["patch_embed.proj.weight"].shape == (8, 3, 4, 4)
    assert named["pos_embed"].shape == (1, 17, 8)
    assert_bit_equal(own_names(named, "it"), own)
    assert digest(own_names(named, "it")) == digest(dict(reversed(own.items())))
    own["head.bias"] = own["head.bias"] + 1
    assert digest(own) != digest(own_names(named, "it"))


def test_a_file_of_both_forms_is_read_once(tmp_path: Path) -> None:
    objective = supervised(model_of())
    flat = foreign_names(objective.state_dict(), objective.encoder.config)
    content = {**document(flat, (2, 1)), "optimizer": {"state": {0: {"step": 3}}}, "epoch": 4}
    torch.save({**content, "quadriga": {"index": 1}}, tmp_path / "finished_checkpoint.pth")
    found = read_weights(tmp_path / "finished_checkpoint.pth")
    assert found.notes == {"index": 1}
    assert_bit_equal(found.tensors, flat)
    assert_bit_equal(join_stages(found.stages, "it"), flat)


def test_positions_are_resampled_and_classes_are_not(tmp_path: Path) -> None:
    torch.save({"model_stages": stages_of(supervised(model_of()), (3,))}, tmp_path / "vit.pth")
    larger = supervised(model_of(image_px=24))
    report = load_weights(larger, tmp_path / "vit.pth", interpolate=True)
    assert list(report.reshaped) == ["encoder.positions"]
    with refuses("head.weight", "(9, 8)"):
        load_weights(supervised(model_of(), classes=9), tmp_path / "vit.pth")


def test_an_objective_without_a_head_leaves_it_out(tmp_path: Path) -> None:
    objective = supervised(model_of())
    export_weights(objective, tmp_path / "timm.safetensors", "timm")
    assert "head.weight" in read_tensors(tmp_path / "timm.safetensors")
    encoder = model_of().build()
    report = load_weights(encoder, tmp_path / "timm.safetensors")
    assert set(report.skipped) == {"head.weight", "head.bias"}
    sincos = model_of().override({"positions": "sincos"})
    mae = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2).build(sincos)
    report = load_weights(mae, tmp_path / "timm.safetensors", strict=False)
    assert set(report.skipped) == {"head.weight", "head.bias"}
    again = supervised(model_of())
    assert load_weights(again, tmp_path / "timm.safetensors").complete
    assert_bit_equal(again.state_dict(), objective.state_dict())


@pytest.mark.parametrize(
    ("stages", "fragments"),
    [
        ([{"blocks.1.norm1.bias": torch.ones(1)}], ("stage 0", "[1]")),
        ([{"norm.bias": torch.ones(1)}] * 2, ("stage 1", "norm.bias")),
        (3, ("model_stages", "list")),
        ([torch.ones(1)], ("model_stages", "list")),
    ],
)
def test_damaged_stages(stages: object, fragments: tuple[object, ...], tmp_path: Path) -> None:
    torch.save({"model_stages": stages}, tmp_path / "odd.pth")
    with refuses(*fragments):
        read_weights(tmp_path / "odd.pth")


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run",))


def test_objects_are_refused_and_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        {"model_stages": [{"norm.bias": torch.ones(1)}], "args": _Runs()}, tmp_path / "x.pth"
    )
    with refuses("x.pth", "Python objects"):
        read_weights(tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(_Runs()))
    with refuses("y.pth"):
        read_weights(tmp_path / "y.pth")
    assert capsys.readouterr().out == ""
