"""The pictures show what the features and the images are."""

import evaluation_fakes as fakes
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from errors import refuses
from quadriga.evaluation import neighbours
from quadriga.evaluation.feature_map import FeatureMapConfig
from quadriga.evaluation.neighbours import NeighboursConfig
from quadriga.evaluation.parts.features import feature_bank
from quadriga.evaluation.parts.pictures import chosen_rows, principal_components
from quadriga.evaluation.patch_maps import PatchMapsConfig, attention_weights, last_block
from quadriga.methods.encoder import EncoderOnly
from quadriga.models.vit import ViTConfig

VIT = ViTConfig(image_px=4, patch_px=2, width=8, depth=2, heads=2, registers=1)


class Plain(fakes.Normalise):
    """Black is 0 and white is 1."""

    mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)

    def batch(self, batch):
        return {**super().batch(batch), "index": batch["index"]}


def vit(seed=0, config=VIT):
    objective = EncoderOnly(config.build())
    objective.initialise(seed)
    return objective.eval()


def test_principal_components_are_scikit_learns_up_to_sign():
    values = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    values = values * torch.arange(1, 7)
    points, share = principal_components(values, 3)
    oracle = PCA(3, svd_solver="full")
    expected = oracle.fit_transform(values.double().numpy())
    np.testing.assert_allclose(np.abs(points.numpy()), np.abs(expected), rtol=1e-9)
    assert float(share) == pytest.approx(oracle.explained_variance_ratio_.sum())
    again, _ = principal_components(values.flip(0), 3)
    np.testing.assert_allclose(again.flip(0), points, rtol=1e-9)


def test_the_sheet_shows_the_nearest_training_images(tmp_path, monkeypatch):
    sheets = []
    monkeypatch.setattr(
        neighbours, "draw_grid", lambda c: sheets.append(c) or Image.new("L", (1, 1))
    )
    images, labels = fakes.images_of(20, 5), np.arange(20) % 7
    train = fakes.ArrayDataset(images, labels, 7, unreadable=[0, 3])
    context = fakes.context_of(tmp_path, train=train, transform=Plain())
    result = NeighboursConfig(images=5, neighbours=3).build().run(context)
    assert set(result.pictures) == {path.name for path in tmp_path.iterdir()}
    titles, shown = zip(*sheets[0], strict=True)
    assert titles == ("image", "1", "2", "3")
    test = context.data("test")
    queries = test.images[chosen_rows(len(test), 5, context)]
    assert (shown[0] == queries.transpose(0, 2, 3, 1)).all()
    readable = np.setdiff1d(np.arange(20), [0, 3])
    unit = [x.reshape(len(x), -1) / 255 for x in (queries, images[readable])]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit]
    nearest = readable[np.argsort(-unit[0] @ unit[1].T, axis=1)[:, :3]]
    for place in range(3):
        assert (shown[place + 1] == images[nearest[:, place]].transpose(0, 2, 3, 1)).all()


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_map_is_drawn(tmp_path, method):
    context = fakes.context_of(tmp_path)
    result = FeatureMapConfig(method=method, images=12).build().run(context)
    with Image.open(tmp_path / "feature_map.png") as picture:
        assert picture.size == (1200, 600)
    assert result.details["images"] == 12
    if method == "pca":
        rows = chosen_rows(23, 12, context)
        values = feature_bank(context, "feature_map").trained.test.values[rows].double().numpy()
        expected = PCA(2).fit(values).explained_variance_ratio_.sum()
        assert result.details["variance shown, this encoder"] == pytest.approx(expected)


def test_attention_weighs_the_values_as_the_module_does():
    attention = vit().encoder.blocks[0].attention
    tokens = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    weights = attention_weights(attention, tokens)
    value = attention.qkv(tokens)[..., 16:].view(2, 6, 2, 4).transpose(1, 2)
    mixed = (weights @ value).transpose(1, 2).reshape(2, 6, 8)
    torch.testing.assert_close(attention.output(mixed), attention(tokens))


def test_maps_of_patches(tmp_path):
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = vit().encoder
    tokens, weights = last_block(network, images)
    assert torch.equal(tokens, network(images))
    inputs = []
    hook = network.blocks[1].attention.register_forward_pre_hook(
        lambda m, args: inputs.append(args[0])
    )
    network(images)
    hook.remove()
    expected = attention_weights(network.blocks[1].attention, inputs[0])[:, :, 0, 2:].mean(1)
    expected = expected - expected.amin(1, keepdim=True)
    torch.testing.assert_close(weights[:, :, 0], expected / expected.amax(1, keepdim=True))

    context = fakes.context_of(tmp_path, objective=vit(), fresh=lambda: vit(1), transform=Plain())
    result = PatchMapsConfig(images=2).build().run(context)
    assert (tmp_path / "patch_maps.png").is_file()
    assert "attention" in result.pictures["patch_maps.png"]
    bare = VIT.override({"class_token": False, "pool": "mean"})
    context = fakes.context_of(
        tmp_path, objective=vit(0, bare), fresh=lambda: vit(1, bare), transform=Plain()
    )
    assert "attention" not in PatchMapsConfig().build().run(context).pictures["patch_maps.png"]
    with refuses("patch_maps", "PixelEncoder", "leave"):
        PatchMapsConfig().build().check(fakes.context_of(tmp_path))
