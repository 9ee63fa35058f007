import pytest
import torch
from torch import Tensor

from errors import refuses
from quadriga import randomness
from quadriga.contracts import Batch, Encoder
from quadriga.methods.mae import MAE, MAEConfig
from quadriga.models.parts.patches import channels_first, patchify
from quadriga.models.vit import ViTConfig

MODEL = ViTConfig(image_px=16, patch_px=4, width=16, depth=2, heads=2)
METHOD = MAEConfig(decoder_width=12, decoder_depth=2, decoder_heads=3)


def batch_of(keys: list[int], side: int = 16) -> Batch:
    pictures = [
        torch.empty(3, side, side).normal_(generator=randomness.generator(key, "image"))
        for key in keys
    ]
    key = torch.tensor(keys)
    return {"image": torch.stack(pictures), "key": key, "index": key}


def made(method: MAEConfig = METHOD, model: ViTConfig = MODEL) -> MAE:
    objective = method.build(model)
    objective.initialise(seed=1)
    return objective


def part(batch: Batch, at: slice) -> Batch:
    return {name: tensor[at] for name, tensor in batch.items()}


def loss_in_the_papers_order(objective: MAE, batch: Batch, noise: Tensor) -> Tensor:
    """The recipe step by step: embed all patches, drop some, put tokens back in order, mask."""
    config, model, decoder = objective.config, objective.encoder, objective.decoder
    tokens = model.embed(batch["image"])
    size, patches = tokens.shape[:2]
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    kept = shuffle[:, : int(patches * (1 - config.mask_ratio))]
    codes = model.encode(torch.stack([tokens[i, kept[i]] for i in range(size)]))
    first, prefix = model.prefix, decoder.prefix
    coded = decoder.embed(codes)
    hidden = patches - kept.shape[1]
    shuffled = torch.cat([coded[:, first:], decoder.mask_token.expand(size, hidden, -1)], dim=1)
    ordered = torch.stack([shuffled[i, restore[i]] for i in range(size)])
    whole = torch.cat([coded[:, :prefix], ordered], dim=1) + decoder.positions
    for block in decoder.blocks:
        whole = block(whole)
    predicted = channels_first(decoder.head(decoder.norm(whole))[:, prefix:], 3)
    target = patchify(batch["image"], model.config.patch_px)
    if config.normalise_pixels:
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6) ** 0.5
    mask = torch.ones(size, patches).scatter_(1, kept, 0.0)
    return (((predicted - target) ** 2).mean(-1) * mask).sum()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("extra", [{}, {"registers": 2}, {"class_token": False, "pool": "mean"}])
def test_loss_is_the_recipe(normalise: bool, extra: dict[str, object]) -> None:
    model = ViTConfig.from_dict({**MODEL.as_dict(), **extra})
    objective = made(METHOD.override({"normalise_pixels": normalise}), model)
    batch = batch_of([3, 4, 5])
    noise = randomness.uniform_rows(batch["key"], salt=9, count=16)
    output = objective(batch, noise)
    expected = loss_in_the_papers_order(objective, batch, noise)
    torch.testing.assert_close(output.only.total, expected, rtol=1e-5, atol=0)
    assert output.only.targets is not None
    assert output.only.targets.item() == 3 * 12


def test_the_mask_belongs_to_the_sample_alone() -> None:
    objective = made()
    together = objective.shuffle(torch.tensor([7, 8, 9, 10]))
    assert torch.equal(objective.shuffle(torch.tensor([9, 7])), together[[2, 0]])
    assert together.sort(dim=1).values.tolist() == [list(range(16))] * 4
    assert len({tuple(row) for row in together.tolist()}) == 4


def test_equal_draws_keep_the_order_of_the_patches() -> None:
    objective = made()
    batch = batch_of([1])
    first = objective(batch, torch.zeros(1, 16)).only.total
    assert torch.equal(first, objective(batch, torch.arange(16.0)[None]).only.total)


@pytest.mark.parametrize("pieces", [2, 4])
def test_micro_batches_add_up(pieces: int) -> None:
    objective, batch = made(), batch_of(list(range(8)))
    whole = objective(batch)
    whole.only.total.backward()
    expected = {
        name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None
    }
    objective.zero_grad()
    size = 8 // pieces
    outputs = [objective(part(batch, slice(i * size, (i + 1) * size))) for i in range(pieces)]
    total = sum(output.only.total for output in outputs)
    total.backward()
    torch.testing.assert_close(total, whole.only.total, rtol=1e-6, atol=0)
    assert sum(output.only.targets for output in outputs) == whole.only.targets
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


def test_features_are_the_encoders_on_whole_images() -> None:
    objective, batch = made(), batch_of([1, 2])
    assert isinstance(objective, Encoder)
    features = objective.features(batch["image"])
    assert torch.equal(features, objective.encoder(batch["image"])[:, 0])


def test_reconstruction_shows_the_visible_patches_as_they_are() -> None:
    objective, batch = made(), batch_of([1, 2])
    pictures = objective.reconstruct(batch)
    image = patchify(batch["image"], 4)
    masked, predicted, combined = (patchify(picture, 4) for picture in pictures)
    visible = objective.shuffle(batch["key"])[:, :4]
    for i in range(2):
        shown = torch.zeros(16, dtype=torch.bool)
        shown[visible[i]] = True
        assert torch.equal(masked[i, shown], image[i, shown])
        assert not masked[i, ~shown].any()
        assert torch.equal(combined[i, shown], image[i, shown])
        assert torch.equal(combined[i, ~shown], predicted[i, ~shown])


@pytest.mark.parametrize("normalise", [True, False])
def test_reconstruction_and_loss_tell_the_same(normalise: bool) -> None:
    objective = made(METHOD.override({"normalise_pixels": normalise}))
    batch = batch_of([1, 2])
    noise = randomness.uniform_rows(batch["key"], salt=9, count=16)
    image = patchify(batch["image"], 4)
    error = patchify(objective.reconstruct(batch, noise).reconstruction, 4) - image
    if normalise:
        error = error / (image.var(-1, keepdim=True) + 1e-6).sqrt()
    hidden = noise.argsort(dim=1).argsort(dim=1) >= 4
    expected = error.pow(2).mean(-1)[hidden].sum()
    torch.testing.assert_close(objective(batch, noise).only.total, expected, rtol=1e-5, atol=0)


def test_bfloat16_autocast_is_near_float32() -> None:
    objective, batch = made(), batch_of([1, 2])
    expected = objective(batch).only.total
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(batch)
    assert output.only.total.dtype == torch.float32
    torch.testing.assert_close(output.only.total, expected, rtol=0.02, atol=0)


def test_meta_device() -> None:
    with torch.device("meta"):
        objective = METHOD.build(MODEL)
    objective.initialise(seed=1)
    batch = {name: tensor.to("meta") for name, tensor in batch_of([1, 2]).items()}
    output = objective(batch)
    output.only.total.backward()
    assert output.only.total.shape == ()
    assert objective.reconstruct(batch).combined.shape == (2, 3, 16, 16)


def test_a_few_steps_learn_one_batch() -> None:
    objective, batch = made(), batch_of([1, 2, 3, 4])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        output = objective(batch)
        optimizer.zero_grad()
        (output.only.total / output.only.targets).backward()
        optimizer.step()
        losses.append((output.only.total / output.only.targets).item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_mask_of_everything_is_refused() -> None:
    four_patches = MODEL.override({"image_px": 8})
    with refuses("objective.mask_ratio", "0.97", "4"):
        METHOD.override({"mask_ratio": 0.97}).build(four_patches)


@pytest.mark.parametrize(("patches", "visible"), [(196, 49), (256, 64), (64, 16), (5, 1)])
def test_a_quarter_stays_visible_rounded_down(patches: int, visible: int) -> None:
    assert METHOD.visible(patches) == visible


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"mask_ratio": 7.5}, ("mask_ratio", "above 0", "below 1", "7.5")),
        ({"decoder_width": 510}, ("decoder_width", "4", "510")),
        ({"decoder_heads": 7}, ("decoder_heads", "decoder_width", "512", "7")),
    ],
)
def test_rules(values: dict[str, object], fragments: tuple[object, ...]) -> None:
    with refuses(*fragments):
        MAEConfig().override(values)
