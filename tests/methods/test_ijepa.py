"""I-JEPA against its reference implementation's loss, written out image by image."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from two_views import assert_same_gradients, at, gradients, shaken

from errors import refuses
from quadriga import randomness
from quadriga.contracts import Batch
from quadriga.methods.ijepa import IJEPA, IJEPAConfig
from quadriga.methods.parts.multi_block import (
    TARGETS,
    BlockSizes,
    draw_blocks,
    least_context,
)
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

MODEL = ViTConfig(image_px=32, patch_px=4, width=24, depth=2, heads=2, pool="mean")
CONFIG = IJEPAConfig(predictor_width=16, predictor_depth=2, predictor_heads=4)
KEYS = torch.arange(300) * 31 + 7


def made(model: ViTConfig = MODEL) -> IJEPA:
    objective = CONFIG.build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    return objective


def images(size: int = 5) -> Batch:
    source = randomness.generator(0, "ijepa")
    image = torch.empty(size, 3, 32, 32).normal_(generator=source)
    return {"image": image, "key": KEYS[:size], "index": KEYS[:size]}


def reference(objective: IJEPA, batch: Batch) -> Tensor:
    """``forward_target``, ``forward_context`` and ``loss_fn``, without padding and masks."""
    encoder, predictor = objective.encoder, objective.predictor
    prefix = encoder.prefix
    blocks = draw_blocks(batch["key"], objective.grid, objective.sizes)
    losses = []
    for number, image in enumerate(batch["image"][:, None]):
        with torch.no_grad():
            h = objective.teacher_encoder(image)[:, prefix:]
            h = functional.layer_norm(h, (h.size(-1),))
        context = sorted(blocks.context[number][blocks.present[number]].tolist())
        x = encoder.patch_projection(encoder.patches(image)[:, context])
        x = x + encoder.positions[int(encoder.config.class_token) :][context]
        z = predictor.embed(encoder.encode(x)[:, prefix:]) + predictor.positions[context]
        for target in blocks.targets[number]:
            tokens = predictor.mask_token + predictor.positions[target]
            tokens = torch.cat([z, tokens[None]], dim=1)
            for block in predictor.blocks:
                tokens = block(tokens)
            found = predictor.output(predictor.norm(tokens))[:, len(context) :]
            losses.append(functional.smooth_l1_loss(found, h[:, target]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("step", [0, 5])
def test_loss_and_gradient_are_the_references(class_token: bool, step: int) -> None:
    objective, batch = made(MODEL.override({"class_token": class_token, "registers": 1})), images()
    objective.before_step(at(step))
    loss, expected = objective(batch).value, reference(objective, batch)
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


@pytest.mark.parametrize("grid", [(3, 3), (8, 8), (14, 14), (6, 9)])
def test_blocks_are_those_of_the_paper(grid: tuple[int, int]) -> None:
    most, sizes = [], {BlockSizes.draw(step, grid) for step in range(12)}
    assert len(sizes) > (1 if grid[0] > 3 else 0)
    for own in sizes:
        blocks = draw_blocks(KEYS, grid, own)
        assert blocks.targets.shape == (300, TARGETS, math.prod(own.target))
        row, column = blocks.targets // grid[1], blocks.targets % grid[1]
        for place, cells, size in ((row, grid[0], own.target[0]), (column, grid[1], own.target[1])):
            assert place.min() == 0
            assert place.max() == cells - 1
            assert (place.amax(dim=2) - place.amin(dim=2) == size - 1).all()
        # Each patch once, and apart from the targets wherever they leave enough.
        assert all(len(set(row.tolist())) == len(row) for row in blocks.context)
        counts = blocks.present.sum(dim=1)
        assert counts.min() >= least_context(grid)
        most.append(int(counts.max()) / blocks.present.shape[1])
        common = (blocks.context[:, :, None] == blocks.targets.flatten(1)[:, None]).any(dim=2)
        alone = ~(common & blocks.present).any(dim=1)
        assert alone.sum() > 0.95 * len(KEYS) or grid[0] == 3
        # The present ones come first, in order.
        assert torch.equal(
            blocks.present.sort(dim=1, descending=True, stable=True)[0], blocks.present
        )
    assert 0.8 < max(most) <= 1


def test_scales_of_the_blocks_are_the_papers() -> None:
    sizes = [BlockSizes.draw(step, (64, 64)) for step in range(300)]
    areas = torch.tensor([math.prod(own.target) for own in sizes]) / 64**2
    aspects = torch.tensor([own.target[0] / own.target[1] for own in sizes])
    context = torch.tensor([math.prod(own.context) for own in sizes]) / 64**2
    for found, low, high in ((areas, 0.15, 0.2), (aspects, 0.75, 1.5), (context, 0.85, 0.969)):
        assert low - 0.03 < found.min() < low + 0.05 * (high - low) + 0.02
        assert high - 0.05 * (high - low) - 0.02 < found.max() < high + 0.03


def test_blocks_of_an_image_are_the_same_in_any_batch_and_differ_between_images() -> None:
    sizes = BlockSizes.draw(3, (8, 8))
    whole = draw_blocks(KEYS, (8, 8), sizes)
    parts = [draw_blocks(part, (8, 8), sizes) for part in KEYS.split(7)]
    for name, tensor in whole._asdict().items():
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), tensor)
    assert len({tuple(row.flatten().tolist()) for row in whole.targets}) > 250


def test_what_the_context_does_not_have_changes_nothing_but_targets() -> None:
    objective, batch = made(MODEL.override({"class_token": False})), images(1)
    blocks = draw_blocks(batch["key"], objective.grid, objective.sizes)
    hidden = torch.ones(64, dtype=torch.bool)
    hidden[blocks.context[blocks.present]] = False
    assert hidden.any()
    objective.teacher_encoder.forward = lambda images: torch.arange(64 * 24.0).view(1, 64, 24)
    place = hidden.view(1, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = {**batch, "image": torch.where(place, batch["image"] + 1, batch["image"])}
    assert torch.equal(objective(batch).value, objective(other).value)


def test_the_teacher_follows_and_its_embeddings_are_watched() -> None:
    objective = made()
    objective.after_initial_weights()
    before = [tensor.clone() for tensor in objective.encoder.parameters()]
    output = objective(images())
    shaken(objective.encoder, "a step")
    objective.before_step(at(25))
    assert objective.teacher_momentum == pytest.approx(0.997)
    metrics = objective.after_step(at(25), output.sums, {})
    for kept, old, new in zip(
        objective.teacher_encoder.parameters(), before, objective.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(kept, 0.997 * old + 0.003 * new, rtol=1e-5, atol=1e-7)
    again = made()
    again.after_initial_weights()
    tokens = functional.layer_norm(again.teacher_encoder(images()["image"])[:, 1:], (24,))
    unit = functional.normalize(tokens.mean(dim=1), dim=1)
    expected = unit.var(dim=0, correction=0).sum().sqrt()
    torch.testing.assert_close(metrics["embedding_deviation"], expected.detach(), rtol=1e-3, atol=0)
    one = objective.after_step(at(0), {"embeddings": unit[0], "images": torch.ones(1)}, {})
    assert one["embedding_deviation"] < 1e-3


def test_what_cannot_be_is_refused() -> None:
    with refuses("model.kind=vit", "resnet"):
        CONFIG.build(ResNetConfig())
    with refuses("model.patch_px", "16"):
        CONFIG.build(MODEL.override({"patch_px": 16}))
    with refuses("predictor_heads", "3", "16"):
        CONFIG.override({"predictor_heads": 3})
