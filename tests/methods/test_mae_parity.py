"""Hugging Face's ViTMAEForPreTraining on the same weights, images and mask."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quadriga import randomness
from quadriga.methods.mae import MAE, MAEConfig
from quadriga.models.vit import ViTConfig
from quadriga.weights import export_weights, load_weights

transformers = pytest.importorskip("transformers", reason="needs the extra quadriga[hf]")
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5
"""Largest difference of a tensor, relative to its largest value."""


def theirs(normalise: bool, qkv_bias: bool = True) -> nn.Module:
    config = transformers.ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=24,
        patch_size=4,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
        layer_norm_eps=1e-6,
        norm_pix_loss=normalise,
        qkv_bias=qkv_bias,
        mask_ratio=0.75,
        attn_implementation="eager",
    )
    return transformers.ViTMAEForPreTraining(config).train()


def ours(normalise: bool, seed: int = 4, qkv_bias: bool = True) -> MAE:
    model = ViTConfig(
        image_px=24, patch_px=4, width=48, depth=3, heads=4, norm_eps=1e-6, qkv_bias=qkv_bias
    )
    method = MAEConfig(
        decoder_width=32, decoder_depth=2, decoder_heads=2, normalise_pixels=normalise
    )
    objective = method.build(model)
    objective.initialise(seed)
    # Biases and norms start at 0 and 1, where a mistake in their place could go unnoticed.
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            source = randomness.generator(seed, "disturb", name)
            parameter += 0.02 * torch.empty(parameter.shape).normal_(generator=source)
    return objective


def loaded(reference: nn.Module, path: Path, **options: bool) -> nn.Module:
    """Load a file the way its users do."""
    reference.config.save_pretrained(path.parent)
    result, info = type(reference).from_pretrained(path.parent, output_loading_info=True, **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return result.train()


def data() -> tuple[dict[str, Tensor], Tensor]:
    source = randomness.generator(0, "parity")
    image = torch.empty(5, 3, 24, 24).normal_(generator=source)
    noise = torch.empty(5, 36).uniform_(generator=source)
    return {"image": image, "key": torch.arange(5), "index": torch.arange(5)}, noise


def difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
def test_loss_and_every_gradient(normalise: bool, qkv_bias: bool, tmp_path: Path) -> None:
    objective = ours(normalise, qkv_bias=qkv_bias)
    export_weights(objective, tmp_path / "model.safetensors", "hf")
    reference = loaded(theirs(normalise, qkv_bias), tmp_path / "model.safetensors")
    batch, noise = data()
    expected = reference(batch["image"], noise=noise)
    expected.loss.backward()
    output = objective(batch, noise)
    loss = output.only.total / output.only.targets
    loss.backward()
    errors = {"loss": difference(loss, expected.loss)}
    # The gradients travel as weights do, so that each meets its counterpart under its own name.
    with torch.no_grad():
        for parameter in [*reference.parameters(), *objective.parameters()]:
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)
    reference.save_pretrained(tmp_path / "gradients")
    counterpart = ours(normalise, qkv_bias=qkv_bias)
    load_weights(counterpart, tmp_path / "gradients" / "model.safetensors", "hf")
    pairs = dict(counterpart.named_parameters())
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        if name.endswith("qkv.bias"):
            # A bias of the keys shifts all scores of a query alike: its gradient is rounding.
            query, key, value = parameter.chunk(3)
            assert key.abs().max() < 1e-6 * parameter.abs().max() + 1e-8
            expected_query, _, expected_value = pairs[name].chunk(3)
            errors[f"{name}, query"] = difference(query, expected_query)
            errors[f"{name}, value"] = difference(value, expected_value)
        else:
            errors[name] = difference(parameter, pairs[name])
    worst = max(errors, key=lambda name: errors[name])
    print(f"greatest relative error of loss and gradients: {errors[worst]:.1e} ({worst})")
    assert errors[worst] < TOLERANCE


def test_weights_travel_from_hugging_face_and_back(tmp_path: Path) -> None:
    reference = theirs(True)
    reference.save_pretrained(tmp_path / "theirs")
    objective = ours(True)
    report = load_weights(objective, tmp_path / "theirs" / "model.safetensors")
    assert report.layout == "hf"
    assert report.complete
    assert len(report.matched) == len(objective.state_dict())
    batch, noise = data()
    expected = reference(batch["image"], noise=noise)
    output = objective(batch, noise)
    assert difference(output.only.total / output.only.targets, expected.loss) < TOLERANCE
    export_weights(objective, tmp_path / "back" / "model.safetensors", "hf")
    again = loaded(theirs(True), tmp_path / "back" / "model.safetensors")
    for (name, tensor), value in zip(
        reference.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, value), name


def test_fixed_positions_are_those_of_the_reference() -> None:
    reference = theirs(True)
    # Version 5.23 leaves the tables of a fresh model at 0; asked directly, it computes them.
    reference.decoder.initialize_weights(num_patches=36)
    expected = reference.decoder.decoder_pos_embed[0]
    assert expected.any()
    torch.testing.assert_close(ours(True).decoder.positions, expected, rtol=0, atol=1e-6)


def test_predictions_of_all_patches(tmp_path: Path) -> None:
    objective = ours(False)
    export_weights(objective, tmp_path / "model.safetensors", "hf")
    reference = loaded(theirs(False), tmp_path / "model.safetensors")
    batch, noise = data()
    logits = reference(batch["image"], noise=noise).logits
    pictures = objective.reconstruct(batch, noise)
    assert difference(pictures.reconstruction, reference.unpatchify(logits)) < TOLERANCE


def test_encoder_alone_is_a_vit_model(tmp_path: Path) -> None:
    objective = ours(True)
    export_weights(objective.encoder, tmp_path / "model.safetensors", "hf")
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=24,
        patch_size=4,
        layer_norm_eps=1e-6,
    )
    reference = transformers.ViTModel(config, add_pooling_layer=False)
    path = tmp_path / "model.safetensors"
    reference = loaded(reference, path, add_pooling_layer=False).eval()
    image = data()[0]["image"]
    expected = reference(image).last_hidden_state
    assert difference(objective.encoder(image), expected) < TOLERANCE
