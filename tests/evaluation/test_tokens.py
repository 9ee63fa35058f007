import evaluation_fakes as fakes
import pytest
import torch

from errors import refuses
from quadriga.contracts import EvaluationContext
from quadriga.evaluation.linear_probe import LinearProbeConfig
from quadriga.evaluation.parts.features import feature_bank
from quadriga.evaluation.parts.tokens import Selection
from quadriga.methods.encoder import EncoderOnly
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

VIT = ViTConfig(image_px=4, patch_px=2, width=8, depth=3, heads=2, registers=1)


def encoder_of(seed: int, config: ViTConfig = VIT) -> EncoderOnly:
    objective = EncoderOnly(config.build())
    objective.initialise(seed)
    return objective.eval()


def context_of(tmp_path, config: ViTConfig = VIT) -> EvaluationContext:
    fresh = lambda: encoder_of(1, config)  # noqa: E731
    return fakes.context_of(tmp_path, objective=encoder_of(0, config), fresh=fresh)


def outputs(network, images):
    """The tokens of every block after the final norm, seen from outside."""
    found = []
    hooks = [b.register_forward_hook(lambda m, i, out: found.append(out)) for b in network.blocks]
    network(images)
    for hook in hooks:
        hook.remove()
    return [network.norm(tokens) for tokens in found]


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_features_are_the_named_tokens_of_the_last_blocks(pool):
    objective = encoder_of(0, VIT.override({"pool": pool}))
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    tokens = outputs(objective.encoder, images)
    classes = [x[:, 0] for x in tokens]
    means = [x[:, 2:].mean(1) for x in tokens]
    for name, vectors in (("class", classes), ("mean", means)):
        for layers in (1, 2, 3):
            found = Selection(name, layers).of(objective, "linear_probe").features(images)
            assert torch.equal(found, torch.cat(vectors[-layers:], 1))
    assert Selection().of(objective, "linear_probe") is objective
    pooled = Selection("pooled", 2).of(objective, "linear_probe").features(images)
    assert torch.equal(pooled[:, 8:], objective.features(images))


def test_the_probe_sees_them_and_each_choice_is_encoded_once(tmp_path):
    context = context_of(tmp_path)
    plain = LinearProbeConfig(epochs=2).build().run(context)
    config = LinearProbeConfig(epochs=2, tokens="mean", layers=2)
    result = config.build().run(context)
    assert (plain.details["width"], result.details["width"]) == (8, 16)
    reads = context.data("train").reads
    bank = feature_bank(context, "linear_probe", Selection("mean", 2))
    assert context.data("train").reads == reads
    with torch.no_grad():
        image = torch.from_numpy(context.data("test").images[:1])
        image = context.transform.batch({"image": image})["image"]
        for encoded, objective in ((bank.trained, context.objective), (bank.random, encoder_of(1))):
            tokens = outputs(objective.encoder, image)[-2:]
            expected = torch.cat([x[:, 2:].mean(1) for x in tokens], 1)
            torch.testing.assert_close(encoded.test.values[:1], expected)


def test_what_an_encoder_does_not_have_is_refused(tmp_path):
    with refuses("linear_probe.layers", "3", "4", "lower"):
        LinearProbeConfig(layers=4).build().check(context_of(tmp_path))
    without = VIT.override({"class_token": False, "pool": "mean"})
    with refuses("linear_probe.tokens", "mean", "class"):
        LinearProbeConfig(tokens="class").build().check(context_of(tmp_path, without))
    resnet = EncoderOnly(ResNetConfig.from_dict({"depth": 18, "stem_width": 4}).build())
    with refuses("linear_probe.tokens", "pooled", "leave"):
        context = fakes.context_of(tmp_path, objective=resnet)
        LinearProbeConfig(tokens="mean").build().check(context)
