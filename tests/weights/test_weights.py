import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from errors import assert_says, refuses
from quadriga import randomness
from quadriga.models.parts.initialise import initialise
from quadriga.models.parts.positions import interpolate_table
from quadriga.models.vit import ViT, ViTConfig
from quadriga.weights import Layout, export_weights, load_weights
from quadriga.weights.files import read_tensors

SMALL = ViTConfig(image_px=12, patch_px=4, width=16, depth=2, heads=2)
FULL = SMALL.override({"positions": "learned", "registers": 3, "layer_scale": 0.1})
NO_BIAS = SMALL.override({"qkv_bias": False})


def filled(module: nn.Module, seed: int) -> nn.Module:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.normal_(generator=randomness.generator(seed, name))
    return module


def made(config: ViTConfig, seed: int = 0) -> ViT:
    model = config.build()
    filled(model, seed)
    return model


def timm_state(depth: int = 2, width: int = 16, patches: int = 9) -> dict[str, Tensor]:
    """A state dict as timm's VisionTransformer has it, written out by hand."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches + 1, width),
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (10, width),
        "head.bias": (10,),
    }
    for i in range(depth):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }.items():
            shapes[f"blocks.{i}.{name}"] = shape
    return {
        name: torch.empty(shape).normal_(generator=randomness.generator(5, name))
        for name, shape in shapes.items()
    }


def saved(state: dict[str, Tensor], path: Path) -> Path:
    safetensors.torch.save_file(state, path)
    return path


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, tensor), value in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, value), name


def test_timm_names_by_hand(tmp_path: Path) -> None:
    state = timm_state()
    model = made(SMALL)
    report = load_weights(model, saved(state, tmp_path / "timm.safetensors"))
    assert report.layout == "timm"
    assert report.complete
    assert not report.reshaped
    assert sorted(report.skipped) == ["head.bias", "head.weight"]
    ours = model.state_dict()
    assert sorted(report.matched) == sorted(ours)
    assert torch.equal(ours["patch_projection.weight"], state["patch_embed.proj.weight"].flatten(1))
    assert torch.equal(ours["positions"], state["pos_embed"][0])
    assert torch.equal(ours["class_token"], state["cls_token"])
    for theirs, name in {
        "norm1.weight": "attention_norm.weight",
        "attn.qkv.bias": "attention.qkv.bias",
        "attn.proj.weight": "attention.output.weight",
        "norm2.bias": "mlp_norm.bias",
        "mlp.fc1.weight": "mlp.hidden.weight",
        "mlp.fc2.bias": "mlp.output.bias",
    }.items():
        assert torch.equal(ours[f"blocks.1.{name}"], state[f"blocks.1.{theirs}"]), name


def test_timm_names_are_written_as_they_are_read(tmp_path: Path) -> None:
    state = timm_state()
    model = made(SMALL)
    load_weights(model, saved(state, tmp_path / "in.safetensors"))
    export_weights(model, tmp_path / "out.safetensors", "timm")
    written = read_tensors(tmp_path / "out.safetensors")
    assert sorted([*written, "head.weight", "head.bias"]) == sorted(state)
    for name, tensor in written.items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize(
    ("layout", "config"),
    [
        *(("quadriga", config) for config in (SMALL, FULL)),
        *(("timm", config) for config in (SMALL, FULL, NO_BIAS)),
        *(("hf", config) for config in (SMALL, NO_BIAS)),
    ],
)
def test_round_trip(layout: Layout, config: ViTConfig, suffix: str, tmp_path: Path) -> None:
    model, path = made(config, 1), tmp_path / f"weights{suffix}"
    export_weights(model, path, layout)
    other = made(config, 2)
    report = load_weights(other, path)
    assert report.layout == layout
    assert report.complete
    if layout == "timm" and config is FULL:
        # timm gives no position to the class token beside registers: it is folded into the token.
        assert not other.positions[0].any()
        torch.testing.assert_close(
            other.class_token[0, 0], (model.class_token + model.positions[0])[0, 0]
        )
        image = torch.empty(1, 3, 12, 12).normal_(generator=randomness.generator(0, "image"))
        torch.testing.assert_close(other(image), model(image))
    else:
        assert_same(model, other)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_nested_checkpoints(key: str, tmp_path: Path) -> None:
    state = timm_state()
    torch.save({key: state, "epoch": 3}, tmp_path / "nested.pth")
    model = made(SMALL)
    assert load_weights(model, tmp_path / "nested.pth").complete
    assert torch.equal(model.norm.weight, state["norm.weight"])


def test_every_spelling_of_hugging_face(tmp_path: Path) -> None:
    model = made(SMALL, 1)
    export_weights(model, tmp_path / "published.safetensors", "hf")
    renames = {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    newer = {}
    for name, tensor in read_tensors(tmp_path / "published.safetensors").items():
        for before, after in renames.items():
            name = name.replace(before, after)
        newer[f"vit.{name}"] = tensor
    newer["classifier.weight"] = torch.zeros(3, 16)
    newer["vit.pooler.dense.weight"] = torch.zeros(16, 16)
    other = made(SMALL, 2)
    report = load_weights(other, saved(newer, tmp_path / "newer.safetensors"))
    assert report.complete
    assert sorted(report.skipped) == ["classifier.weight", "vit.pooler.dense.weight"]
    assert_same(model, other)


def test_positions_are_interpolated_when_asked(tmp_path: Path) -> None:
    state = timm_state()
    path = saved(state, tmp_path / "timm.safetensors")
    larger = made(SMALL.override({"image_px": 20}))
    before = {name: tensor.clone() for name, tensor in larger.state_dict().items()}
    with refuses("positions", "(26, 16)", "pos_embed", "(1, 10, 16)", "interpolate=True"):
        load_weights(larger, path)
    for name, tensor in larger.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    report = load_weights(larger, path, interpolate=True)
    expected = interpolate_table(state["pos_embed"][0], (5, 5), prefix=1)
    assert torch.equal(larger.positions, expected)
    assert dict(report.reshaped) == {"positions": "from (10, 16) to (26, 16)"}
    assert_says(str(report), "1 reshaped", "positions", "(10, 16)", "(26, 16)")


def test_wrong_shapes_name_the_tensor(tmp_path: Path) -> None:
    state = timm_state()
    state["blocks.1.mlp.fc1.bias"] = torch.zeros(7)
    state["norm.bias"] = torch.zeros(16, dtype=torch.int64)
    path = saved(state, tmp_path / "timm.safetensors")
    model = made(SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with refuses("blocks.1.mlp.hidden.bias", "(64,)", "(7,)"):
        load_weights(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = load_weights(model, path, strict=False)
    assert list(report.kept) == ["blocks.1.mlp.hidden.bias", "norm.bias"]
    assert_says(report.kept["blocks.1.mlp.hidden.bias"], "(7,)", "(64,)")
    assert_says(report.kept["norm.bias"], "torch.int64", "torch.float32")
    assert not report.complete
    assert not report.missing
    assert_says(str(report), "2 kept", "blocks.1.mlp.hidden.bias")
    for name in report.kept:
        assert torch.equal(model.state_dict()[name], before[name])
    assert torch.equal(model.norm.weight, state["norm.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in timm_state().items()}
    model = made(SMALL)
    assert load_weights(model, saved(state, tmp_path / "timm.safetensors")).complete
    weight = model.state_dict()["blocks.1.attention.qkv.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["blocks.1.attn.qkv.weight"].to(torch.float32))


def test_a_table_that_cannot_be_resampled(tmp_path: Path) -> None:
    state = timm_state()
    state["pos_embed"] = torch.zeros(1, 8, 16)  # a class token and seven patches: no square
    path = saved(state, tmp_path / "timm.safetensors")
    with refuses("positions", "(10, 16)"):
        load_weights(made(SMALL), path, interpolate=True)
    report = load_weights(made(SMALL), path, interpolate=True, strict=False)
    assert list(report.kept) == ["positions"]


def test_missing_and_unexpected(tmp_path: Path) -> None:
    state = timm_state()
    del state["norm.bias"]
    state["blocks.0.attn.rel_pos"] = torch.zeros(3)
    state["blocks.2.norm1.weight"] = torch.zeros(16)
    path = saved(state, tmp_path / "timm.safetensors")
    model = made(SMALL)
    before = model.norm.bias.clone()
    with refuses("1 missing", "norm.bias", "2 unexpected", "blocks.0.attn.rel_pos", "strict=False"):
        load_weights(model, path)
    report = load_weights(model, path, strict=False)
    assert report.missing == ("norm.bias",)
    assert sorted(report.unexpected) == ["blocks.0.attn.rel_pos", "blocks.2.norm1.weight"]
    assert not report.complete
    assert torch.equal(model.norm.bias, before)
    assert torch.equal(model.norm.weight, state["norm.weight"])
    assert "1 missing: norm.bias" in str(report)


class Wrapped(nn.Module):
    """An encoder and a decoder, as an objective has them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SMALL.build()
        self.decoder = nn.Linear(2, 2)


@pytest.mark.parametrize("layout", ["quadriga", "timm"])
def test_encoders_move_between_objectives_and_models(layout: Layout, tmp_path: Path) -> None:
    bare, path = made(SMALL, 1), tmp_path / "weights.safetensors"
    export_weights(bare, path, layout)
    wrapped = Wrapped()
    report = load_weights(wrapped, path, strict=False)
    assert report.missing == ("decoder.weight", "decoder.bias")
    assert_same(bare, wrapped.encoder)
    export_weights(wrapped, tmp_path / "wrapped.safetensors")
    other = made(SMALL, 2)
    report = load_weights(other, tmp_path / "wrapped.safetensors")
    assert report.complete
    assert report.skipped == ("decoder.bias", "decoder.weight")
    assert_same(bare, other)


def test_own_names_serve_any_module_and_foreign_ones_do_not(tmp_path: Path) -> None:
    one, other, path = nn.Linear(3, 2), nn.Linear(3, 2), tmp_path / "linear.safetensors"
    initialise(one, seed=1)
    export_weights(one, path)
    assert load_weights(other, path).complete
    assert_same(one, other)
    for refused in (
        lambda: export_weights(one, path, "timm"),
        lambda: load_weights(other, path, "hf"),
    ):
        with refuses("vision transformer", "Linear"):
            refused()


def test_names_without_a_counterpart_are_refused(tmp_path: Path) -> None:
    with refuses("hf", "encoder.register_tokens"):
        export_weights(made(SMALL.override({"registers": 1})), tmp_path / "a.safetensors", "hf")
    assert not list(tmp_path.iterdir())


def test_files_of_something_else(tmp_path: Path) -> None:
    path = saved({"conv1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with refuses("timm", "conv1.weight"):
        load_weights(made(SMALL), path)
    with refuses("conv1.weight"):
        load_weights(made(SMALL), path, "timm", strict=False)
