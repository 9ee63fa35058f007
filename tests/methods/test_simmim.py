"""SimMIM against its reference implementation's loss, written out, and Hugging Face's model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from two_views import assert_same_gradients, gradients, shaken

from errors import refuses
from quadriga import randomness
from quadriga.contracts import Batch
from quadriga.methods.simmim import SimMIM, SimMIMConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig
from quadriga.weights import load_weights

MODEL = ViTConfig(
    image_px=24, patch_px=4, width=24, depth=2, heads=2, positions="learned", registers=1
)
CONFIG = SimMIMConfig(mask_px=8)


def made(config: SimMIMConfig = CONFIG, model: ViTConfig = MODEL) -> SimMIM:
    objective = config.build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    return objective


def images(size: int = 5) -> Batch:
    source = randomness.generator(0, "simmim")
    key = torch.arange(size) * 31 + 7
    return {
        "image": torch.empty(size, 3, 24, 24).normal_(generator=source),
        "key": key,
        "index": key,
    }


def reference(objective: SimMIM, batch: Batch) -> Tensor:
    """``SimMIM.forward`` with its convolution of 1 x 1 and ``PixelShuffle``."""
    encoder, x = objective.encoder, batch["image"]
    mask = objective.masks(batch["key"]).view(-1, 6, 6)
    z = encoder.patch_projection(encoder.patches(x))
    w = mask.flatten(1).unsqueeze(-1).float()
    z = z * (1.0 - w) + objective.mask_token * w
    z = encoder.encode(z + encoder.positions[1:])[:, 2:]
    z = z.permute(0, 2, 1).reshape(-1, 24, 6, 6)
    decoder = objective.decoder
    x_rec = nn.PixelShuffle(4)(functional.conv2d(z, decoder.weight[:, :, None, None], decoder.bias))
    mask = mask.repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
    loss_recon = functional.l1_loss(x, x_rec, reduction="none")
    loss: Tensor = (loss_recon * mask).sum() / (mask.sum() + 1e-5) / 3
    return loss


@pytest.mark.parametrize("config", [CONFIG, SimMIMConfig(mask_px=4, mask_ratio=0.3)])
def test_loss_and_gradient_are_the_references(config: SimMIMConfig) -> None:
    objective, batch = made(config), images()
    loss, expected = objective(batch).value, reference(objective, batch)
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def taken_over(theirs: nn.Module, folder: Path, grads: bool = False) -> dict[str, Tensor]:
    """Return the values, or the gradients, of Hugging Face's model under our names."""
    if grads:
        with torch.no_grad():
            for parameter in theirs.parameters():
                assert parameter.grad is not None
                parameter.copy_(parameter.grad)
    theirs.save_pretrained(folder)
    encoder = made(model=MODEL.override({"registers": 0})).encoder
    report = load_weights(encoder, folder / "model.safetensors", "hf", strict=False)
    assert not report.missing
    values = {f"encoder.{name}": tensor for name, tensor in encoder.named_parameters()}
    convolution = theirs.decoder[0]
    return {
        **values,
        "mask_token": theirs.vit.embeddings.mask_token[0, 0],
        "decoder.weight": convolution.weight[:, :, 0, 0],
        "decoder.bias": convolution.bias,
    }


@pytest.mark.filterwarnings("ignore")
def test_loss_and_gradient_are_hugging_faces(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra quadriga[hf]")
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        image_size=24,
        patch_size=4,
        encoder_stride=4,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )
    theirs = transformers.ViTForMaskedImageModeling(config).train()
    shaken(theirs, "theirs")
    objective, batch = made(model=MODEL.override({"registers": 0})), images()
    with torch.no_grad():
        for name, value in taken_over(theirs, tmp_path / "weights").items():
            objective.get_parameter(name).copy_(value)
    loss = objective(batch).value
    expected = theirs(batch["image"], bool_masked_pos=objective.masks(batch["key"])).loss
    torch.testing.assert_close(loss, expected)
    expected.backward()
    found = gradients(loss, objective)
    assert_same_gradients(found, taken_over(theirs, tmp_path / "gradients", grads=True))


def test_whole_cells_are_masked_and_nothing_else_is_hidden() -> None:
    objective, batch = made(), images()
    masks = objective.masks(batch["key"])
    cells = masks.view(5, 3, 2, 3, 2).permute(0, 1, 3, 2, 4).flatten(3)
    assert torch.equal(cells.all(dim=3), cells.any(dim=3))
    assert cells.all(dim=3).flatten(1).sum(dim=1).tolist() == 5 * [6]  # ceil(9 * 0.6)
    assert len({tuple(row.tolist()) for row in masks}) > 1
    # A masked pixel changes the target only.
    hidden = objective.encoder.embed(batch["image"], masks, objective.mask_token)
    place = masks.view(5, 6, 6).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    other = torch.where(place, batch["image"] + 1, batch["image"])
    assert torch.equal(objective.encoder.embed(other, masks, objective.mask_token), hidden)


def test_all_may_be_masked() -> None:
    objective = made(SimMIMConfig(mask_px=24, mask_ratio=0.01))
    assert objective.masks(images()["key"]).all()
    assert objective(images()).value.isfinite()


@pytest.mark.parametrize("mask_px", [6, 16])
def test_cells_that_do_not_fit_are_refused(mask_px: int) -> None:
    with refuses("objective.mask_px", str(mask_px), "4"):
        SimMIMConfig(mask_px=mask_px).build(MODEL)
    with refuses("model.kind=vit", "resnet"):
        SimMIMConfig().build(ResNetConfig())
