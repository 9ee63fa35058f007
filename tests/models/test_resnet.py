import math
from pathlib import Path

import pytest
import torch
from tallies import apply_tallies, take_tallies, tallying
from torch import Tensor, nn
from torchvision_resnet import Reference

from errors import refuses
from quadriga import randomness
from quadriga.config.base import construct
from quadriga.contracts import Encoder, ModelConfig
from quadriga.errors import UserError
from quadriga.models.parts.initialise import initialise
from quadriga.models.resnet import ResNet, ResNetConfig
from quadriga.models.vit import ViTConfig
from quadriga.weights import export_weights, load_tensors, load_weights
from quadriga.weights.files import read_tensors

TINY = ResNetConfig(image_px=32, depth=18, stem_width=8, stem="small")
CASES = [
    TINY,
    TINY.override({"stem": "standard"}),
    TINY.override({"depth": 34}),
    TINY.override({"depth": 50, "stem": "standard", "image_px": 64}),
]


def images(config: ResNetConfig, batch: int = 4) -> Tensor:
    source = randomness.generator(0, "images")
    return torch.empty(batch, 3, config.image_px, config.image_px).normal_(generator=source)


def reference_of(config: ResNetConfig, classes: int = 10) -> Reference:
    """A reference whose every value is drawn, running statistics too."""
    model = Reference(config.depth, classes, config.stem_width, config.stem == "small")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            source = randomness.generator(7, name)
            if name.endswith("num_batches_tracked"):
                tensor.fill_(3)
            elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=source)
            elif tensor.dim() == 4:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=source)
            else:
                tensor.normal_(0, 0.1, generator=source)
    return model


class Classifier(nn.Module):
    """An encoder and a classifier, as an objective has them."""

    def __init__(self, config: ResNetConfig, classes: int = 10) -> None:
        super().__init__()
        self.encoder = config.build()
        self.head = nn.Linear(config.width, classes)
        initialise(self, seed=0)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.encoder.features(pictures))


@pytest.mark.parametrize("config", CASES, ids=str)
def test_the_same_as_torchvision_forward_backward_and_running(config: ResNetConfig) -> None:
    reference, model = reference_of(config).train(), Classifier(config).train()
    report = load_tensors(model, reference.state_dict(), Path("reference"))
    assert report.complete
    assert report.layout == "timm"
    assert not report.skipped
    pictures = images(config)
    weights = torch.linspace(-1, 1, 40).view(4, 10)
    with tallying(model):
        ours = model(pictures)
    theirs = reference(pictures)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    apply_tallies(model, take_tallies(model))

    named = dict(reference.named_parameters())
    loaded = Classifier(config)
    gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
    assert len(gradients) == len(named) == len(list(model.parameters()))
    # The gradients of the reference, carried to our names by the same table.
    load_tensors(loaded, gradients, Path("gradients"), "timm", strict=False)
    for name, parameter in model.named_parameters():
        expected = loaded.get_parameter(name)
        torch.testing.assert_close(parameter.grad, expected.detach(), rtol=1e-3, atol=1e-4)
    load_tensors(loaded, reference.state_dict(), Path("reference"))
    for name, buffer in loaded.named_buffers():
        if not name.endswith("tally"):
            torch.testing.assert_close(model.get_buffer(name), buffer, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        model.eval()(pictures), reference.eval()(pictures), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)]
)
def test_published_parameter_counts_and_names(depth: int, parameters: int) -> None:
    config = ResNetConfig.from_dict({"depth": depth})
    with torch.device("meta"):
        encoder, head = config.build(), nn.Linear(config.width, 1000)
        reference = Reference(depth)
    own = [*encoder.parameters(), *head.parameters()]
    assert sum(p.numel() for p in own) == parameters
    assert sum(p.numel() for p in reference.parameters()) == parameters
    assert len(encoder.state_dict()) + 2 == len(reference.state_dict())
    assert config.width == (2048 if depth == 50 else 512)


@pytest.mark.parametrize("config", CASES, ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_written_as_read(config: ResNetConfig, suffix: str, tmp_path: Path) -> None:
    state = reference_of(config).state_dict()
    model = Classifier(config)
    load_tensors(model, state, Path("reference"))
    export_weights(model, tmp_path / f"whole{suffix}", "timm")
    written = read_tensors(tmp_path / f"whole{suffix}")
    assert written.keys() == state.keys()
    for name, tensor in written.items():
        assert torch.equal(tensor, state[name]), name
    Reference(config.depth, 10, config.stem_width, config.stem == "small").load_state_dict(written)

    bare = config.build()
    report = load_weights(bare, tmp_path / f"whole{suffix}")
    assert report.complete
    assert sorted(report.skipped) == ["fc.bias", "fc.weight"]
    export_weights(bare, tmp_path / f"own{suffix}")
    other = Classifier(config)
    report = load_weights(other, tmp_path / f"own{suffix}", strict=False)
    assert report.layout == "quadriga"
    assert report.missing == ("head.weight", "head.bias")
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[name], tensor), name


def test_files_without_counts_of_steps_are_whole() -> None:
    state = reference_of(TINY).state_dict()
    older = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    model = Classifier(TINY)
    assert load_tensors(model, older, Path("older.pth")).complete
    assert not model.encoder.stem.norm.num_batches_tracked.any()


def test_what_does_not_fit_is_named() -> None:
    model, before = Classifier(TINY), Classifier(TINY).state_dict()
    standard = reference_of(TINY.override({"stem": "standard"})).state_dict()
    with refuses("encoder.stem.conv.weight", "conv1.weight"):
        load_tensors(model, standard, Path("standard"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    deeper = reference_of(TINY.override({"depth": 34})).state_dict()
    with refuses("unexpected", "layer1.2.conv1.weight"):
        load_tensors(model, deeper, Path("deeper"))
    del deeper["bn1.running_mean"]
    report = load_tensors(model, deeper, Path("deeper"), strict=False)
    assert report.missing == ("encoder.stem.norm.running_mean",)
    transformer = ViTConfig(image_px=12, patch_px=4, width=16, depth=1, heads=2).build()
    with pytest.raises(UserError, match="has no tensor that fits this model"):
        load_tensors(transformer, deeper, Path("deeper"), strict=False)
    with refuses("layout hf", "Classifier"):
        export_weights(model, Path("never.safetensors"), "hf")


@pytest.mark.parametrize("zero", [False, True])
def test_every_tensor_is_filled_after_the_meta_device(zero: bool) -> None:
    config = TINY.override({"zero_init_residual": zero, "stem_width": 32})
    with torch.device("meta"):
        model: ResNet = config.build()
    initialise(model, seed=3)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(math.nan if tensor.is_floating_point() else -1)
    initialise(model, seed=3)
    again: ResNet = config.build()
    initialise(again, seed=3)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, dict([*again.named_parameters(), *again.named_buffers()])[name])
    block = model.stages[1].blocks[0]
    assert block.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert block.norm2.weight.unique().tolist() == [0.0 if zero else 1.0]
    assert block.norm1.weight.unique().tolist() == [1.0]
    assert block.shortcut.norm.weight.unique().tolist() == [1.0]
    assert block.norm1.running_var.unique().tolist() == [1.0]
    if zero:
        maps = torch.linspace(0, 1, 32 * 16).view(1, 32, 4, 4)
        assert torch.equal(model.stages[0].blocks[1](maps), maps)


def test_config_round_trip_encoder_contract_and_sizes() -> None:
    assert construct(ModelConfig, TINY.as_dict()) == TINY  # type: ignore[type-abstract]
    assert TINY.as_dict()["kind"] == "resnet"
    model = TINY.build()
    initialise(model, seed=0)
    assert isinstance(model, Encoder)
    assert model(images(TINY)).shape == (4, 64, 4, 4)
    assert model.features(images(TINY)).shape == (4, TINY.width)
    smaller = images(TINY.override({"image_px": 20}))
    assert model.features(smaller).shape == (4, TINY.width)
    with refuses("3 channels", "model.channels"):
        model(images(TINY)[:, :1])
    with pytest.raises(UserError, match="depth"):
        TINY.override({"depth": 101})
