import pytest
import torch
from torch import Tensor
from torch.nn import functional

from errors import refuses
from quadriga import randomness
from quadriga.config.base import construct
from quadriga.contracts import Encoder, ModelConfig
from quadriga.models.parts.initialise import initialise
from quadriga.models.parts.patches import (
    channels_first,
    channels_last,
    patchify,
    take_rows,
    unpatchify,
)
from quadriga.models.parts.positions import interpolate_table
from quadriga.models.vit import ViT, ViTConfig

TINY = ViTConfig(image_px=12, patch_px=4, width=16, depth=2, heads=2)


def images(batch: int = 2, side: int = 12, seed: int = 0) -> Tensor:
    source = randomness.generator(seed, "images")
    return torch.empty(batch, 3, side, side).normal_(generator=source)


def made(config: ViTConfig) -> ViT:
    model = config.build()
    initialise(model, seed=1)
    return model.eval()


def test_patches_and_back() -> None:
    pictures = torch.empty(2, 3, 8, 12).normal_(generator=randomness.generator(0, "wide"))
    patches = patchify(pictures, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(patches[1, 5], pictures[1, :, 4:, 8:].flatten())
    assert torch.equal(unpatchify(patches, 4, rows=2), pictures)


def test_pixel_orders() -> None:
    patch = images(1, 4).flatten(1)
    expected = images(1, 4)[0].permute(1, 2, 0).flatten()
    assert torch.equal(channels_last(patch, 3)[0], expected)
    assert torch.equal(channels_first(channels_last(patch, 3), 3), patch)


def test_take_rows_is_gather() -> None:
    sequences = images().flatten(2)
    order = torch.tensor([[2, 0], [1, 1]])
    expected = sequences.gather(1, order[:, :, None].expand(-1, -1, sequences.shape[2]))
    assert torch.equal(take_rows(sequences, order), expected)


def test_embedding_is_a_convolution_plus_positions() -> None:
    model = made(TINY)
    kernel = model.patch_projection.weight.view(16, 3, 4, 4)
    projected = functional.conv2d(images(), kernel, model.patch_projection.bias, stride=4)
    expected = projected.flatten(2).transpose(1, 2) + model.positions[1:]
    torch.testing.assert_close(model.embed(images()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_embedding_some_patches_is_embedding_all_and_choosing(positions: str) -> None:
    model = made(TINY.override({"positions": positions}))
    order = torch.tensor([[3, 1, 8], [0, 5, 4]])
    some = model.embed_patches(take_rows(model.patches(images()), order), order)
    torch.testing.assert_close(some, take_rows(model.embed(images()), order))


@pytest.mark.parametrize(
    ("class_token", "registers"), [(True, 0), (True, 2), (False, 2), (False, 0)]
)
def test_prefix_and_pooling(class_token: bool, registers: int) -> None:
    pool = "class" if class_token else "mean"
    values = {"class_token": class_token, "registers": registers, "pool": pool}
    model = made(ViTConfig.from_dict({**TINY.as_dict(), **values}))
    tokens = model(images())
    assert tokens.shape == (2, class_token + registers + 9, 16)
    assert model.prefix == class_token + registers
    patches = tokens[:, model.prefix :]
    expected = tokens[:, 0] if class_token else patches.mean(dim=1)
    assert torch.equal(model.features(images()), expected)


def test_encoding_does_not_mind_the_order_of_patches() -> None:
    model = made(TINY.override({"registers": 1}))
    order = torch.tensor([[8, 7, 6, 5, 4, 3, 2, 1, 0]]).expand(2, 9)
    tokens = model.encode(take_rows(model.embed(images()), order))
    expected = model(images())
    torch.testing.assert_close(tokens[:, :2], expected[:, :2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tokens[:, 2:].flip(1), expected[:, 2:], rtol=1e-5, atol=1e-6)


def test_class_token_has_no_fixed_position_and_a_learned_one() -> None:
    assert not made(TINY).positions[0].any()
    learned = made(TINY.override({"positions": "learned"}))
    assert isinstance(learned.positions, torch.nn.Parameter)
    before = learned.features(images())
    with torch.no_grad():
        learned.positions[0] += 1.0
    assert not torch.allclose(before, learned.features(images()))


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("tiny", 5.5), ("small", 21.7), ("base", 85.8), ("large", 303.3), ("huge", 630.8)],
)
def test_presets_have_the_published_sizes(preset: str, millions: float) -> None:
    with torch.device("meta"):
        model = getattr(ViTConfig, preset)().override({"positions": "learned"}).build()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_config_round_trip_and_encoder_contract() -> None:
    assert construct(ModelConfig, TINY.as_dict()) == TINY  # type: ignore[type-abstract]
    assert TINY.as_dict()["kind"] == "vit"
    assert isinstance(TINY.build(), Encoder)


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"image_px": 30}, ("image_px", "patch_px", "4", "30")),
        ({"heads": 3}, ("heads", "width", "16", "3")),
        ({"width": 6}, ("width", "4", "positions=sincos", "6")),
        ({"class_token": "false"}, ("pool", "mean", "class_token=false", "class")),
        ({"depth": -1}, ("depth", "at least 0", "-1")),
    ],
)
def test_rules(values: dict[str, object], fragments: tuple[object, ...]) -> None:
    with refuses(*fragments):
        TINY.override(values)


def test_images_of_another_size_are_refused_where_the_grid_is_fixed() -> None:
    with refuses("(3, 12, 12)", "(3, 16, 16)"):
        made(TINY).patches(images(side=16))


@pytest.mark.parametrize("shape", [(3, 12, 14), (3, 10, 12), (1, 12, 12)])
def test_images_that_the_patch_does_not_divide_are_refused(shape: tuple[int, ...]) -> None:
    with refuses("model.patch_px", "3 channels", str(shape)):
        made(TINY)(torch.zeros(2, *shape))


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("grid", [(2, 2), (5, 4), (3, 3)])
def test_any_size_has_the_interpolated_positions(positions: str, grid: tuple[int, int]) -> None:
    model = made(TINY.override({"positions": positions}))
    pictures = images(side=20)[:, :, : 4 * grid[0], : 4 * grid[1]]
    table = interpolate_table(model.positions, grid, prefix=1)
    expected = model.patch_projection(patchify(pictures, 4)) + table[1:]
    with torch.autocast("cpu", torch.bfloat16):
        places = model.places(grid)
    assert places.dtype == torch.float32
    torch.testing.assert_close(places, table[1:])
    torch.testing.assert_close(model.embed(pictures), expected)
    assert torch.equal(model.embed(pictures), model.embed(pictures))
    if positions == "learned":
        weights = torch.empty(expected.shape).normal_(generator=randomness.generator(0, "w"))
        own, wanted = (
            torch.autograd.grad((found * weights).sum(), model.positions)[0]
            for found in (model.embed(pictures), expected)
        )
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-5)


def test_masked_patches_are_the_token_at_their_places() -> None:
    model, token = made(TINY), torch.linspace(-1, 1, 16).requires_grad_()
    masked = torch.zeros(2, 9, dtype=torch.bool)
    masked[0, [0, 5]] = masked[1, 8] = True
    found, plain = model.embed(images(), masked, token), model.embed(images())
    assert torch.equal(found[~masked], plain[~masked])
    places = model.positions[1:].expand(2, 9, 16)[masked]
    assert torch.equal(found[masked], token + places)
    assert torch.equal(torch.autograd.grad(found.sum(), token)[0], torch.full((16,), 3.0))
    none = model.embed(images(), torch.zeros_like(masked), token)
    assert torch.equal(none, plain)


def test_two_views_of_a_sample_drop_other_branches() -> None:
    model = made(TINY.override({"depth": 4, "drop_path": 0.5})).train()
    keys = torch.arange(16)
    one, again, other = (
        model.features(images(16), randomness.pass_keys(keys, name))
        for name in ("view 1", "view 1", "view 2")
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    with pytest.raises(RuntimeError, match="keys"):
        model.features(images(16))
    assert torch.equal(model.eval().features(images(16), keys), model.features(images(16)))
