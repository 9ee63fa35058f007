"""DINOv2 against the losses of its implementation, written out."""

from pathlib import Path

import pytest
import torch
from lightly_reference import lightly_class
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from two_views import (
    VIT,
    assert_same_gradients,
    at,
    gradients,
    multi_crop,
    scores,
    shaken,
    two_views,
)

from errors import refuses
from quadriga import randomness
from quadriga.contracts import Batch
from quadriga.distributed.environment import SINGLE
from quadriga.distributed.slots import alone
from quadriga.engine.initial_weights import check_initial_weights, fill_from_sources
from quadriga.methods.dinov2 import DINOv2, DINOv2Config
from quadriga.methods.parts.masks import crop_masks
from quadriga.recipes.find import find_recipe

CONFIG = DINOv2Config(prototypes=30, hidden_width=24, bottleneck_width=8, koleo_group=3)
MODEL = VIT.override({"registers": 2})


def made(config: DINOv2Config = CONFIG) -> DINOv2:
    objective = config.build(MODEL)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    with torch.no_grad():
        objective.mask_token.normal_(0, 0.1, generator=randomness.generator(0, "token"))
    return objective


def sinkhorn_knopp_teacher(teacher_output: Tensor, teacher_temp: float) -> Tensor:
    q = torch.exp(teacher_output.double() / teacher_temp).t()
    count, prototypes = q.shape[1], q.shape[0]
    q /= torch.sum(q)
    for _ in range(3):
        q /= torch.sum(q, dim=1, keepdim=True)
        q /= prototypes
        q /= torch.sum(q, dim=0, keepdim=True)
        q /= count
    return (q * count).t().float()


def reference(objective: DINOv2, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """``SSLMetaArch.forward_backward``: the losses of class tokens, patches and the regulariser."""
    config, size = objective.config, len(batch["key"])
    crops = batch["crops"].unbind(1)
    masks = torch.cat(
        [
            crop_masks(batch["key"], n, (4, 4), config.mask_probability, config.mask_ratio)
            for n in range(2)
        ]
    )
    tokens = objective.encoder.encode(
        objective.encoder.embed(torch.cat(crops), masks, objective.mask_token)
    )
    local = batch["local_crops"].unbind(1) if "local_crops" in batch else ()
    views = [*tokens[:, 0].chunk(2), *(objective.encoder(crop)[:, 0] for crop in local)]
    student = [scores(objective.head, objective.prototypes, view) / 0.1 for view in views]
    student_patch = scores(objective.patch_head, objective.patch_prototypes, tokens[:, 3:][masks])
    with torch.no_grad():
        targets = objective.teacher_encoder(torch.cat(crops))
        temp = objective.teacher_temperature
        teacher = scores(objective.teacher_head, objective.teacher_prototypes, targets[:, 0])
        teacher_cls = sinkhorn_knopp_teacher(teacher, temp).chunk(2)
        teacher_patch = sinkhorn_knopp_teacher(
            scores(
                objective.teacher_patch_head,
                objective.teacher_patch_prototypes,
                targets[:, 3:][masks],
            ),
            temp,
        )
    of_class, terms = torch.zeros(()), 0
    for q, target in enumerate(teacher_cls):
        for v, view in enumerate(student):
            if v != q:
                of_class = (
                    of_class
                    - torch.sum(target * functional.log_softmax(view, dim=-1), dim=-1).mean()
                )
                terms += 1
    loss = torch.sum(teacher_patch * functional.log_softmax(student_patch / 0.1, dim=-1), dim=-1)
    weight = (1 / masks.sum(-1).clamp(min=1.0)).unsqueeze(-1).expand_as(masks)[masks]
    # loss_scales = 2 and ibot_loss_scale = 1 / 2 cancel.
    of_patches = -(loss * weight).sum() / (2 * size)
    spread = torch.zeros(())
    for crop in tokens[:, 0].chunk(2):
        for group in crop.split(3):
            spread = spread + nearest_in(group) * len(group) / size
    return of_class / terms, of_patches, spread


def nearest_in(rows: Tensor) -> Tensor:
    rows = functional.normalize(rows, eps=1e-8, p=2, dim=-1)
    dots = torch.mm(rows, rows.t()).fill_diagonal_(-1)
    nearest = rows[dots.argmax(dim=1)]
    return -torch.log(torch.nn.PairwiseDistance(2, eps=1e-8)(rows, nearest) + 1e-8).mean()


@pytest.mark.parametrize("local", [0, 3])
def test_losses_and_gradients_are_the_references(local: int) -> None:
    objective = made()
    batch = multi_crop(local=local) if local else two_views()
    output, expected = objective(batch), reference(objective, batch)
    for name, wanted in zip(("class", "patches", "koleo"), expected, strict=True):
        term = output.terms[name]
        torch.testing.assert_close(term.total / term.targets, wanted, rtol=1e-5, atol=1e-5)
    total = expected[0] + expected[1] + 0.1 * expected[2]
    torch.testing.assert_close(output.value, total, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(output.value, objective), gradients(total, objective))


def test_the_regulariser_is_lightlys() -> None:
    objective, batch = made(CONFIG.override({"koleo_group": 16})), two_views()
    theirs = lightly_class("lightly.loss:KoLeoLoss")()
    tokens = objective.embed(batch)["tokens"]
    expected = theirs(tokens[:, 0]) + theirs(tokens[:, 1])
    torch.testing.assert_close(objective(batch).terms["koleo"].total, expected)


def test_rows_of_micro_batches_make_the_loss_of_the_whole() -> None:
    objective, batch = made(), multi_crop(7)
    cut = [{n: t[i : i + 3] for n, t in batch.items()} for i in range(0, 7, 3)]
    rows, targets = (
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for parts in ([objective.embed(b) for b in cut], [objective.targets(b) for b in cut])
    )
    found = objective.combine(rows, targets, alone(7)).value
    torch.testing.assert_close(found, objective(batch).value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("probability", "ratio"), [(0.0, 0.5), (1.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("size", [1, 3])
def test_mask_ratios_at_their_ends_and_batches_of_one_are_finite(
    probability: float, ratio: float, size: int
) -> None:
    objective = made(
        CONFIG.override({"mask_probability": probability, "mask_ratio": (ratio, ratio)})
    )
    output = objective(two_views(size))
    assert (output.terms["patches"].total > 0) == (probability * ratio > 0)
    assert (output.terms["koleo"].total != 0) == (size > 1)
    output.value.backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)


def test_class_tokens_of_the_regulariser_have_no_head() -> None:
    objective = made()
    objective(two_views()).terms["koleo"].total.backward()
    reached = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[0] for name in reached} == {"encoder", "mask_token"}


def test_the_teacher_follows_all_parts() -> None:
    objective = made()
    objective.after_initial_weights()
    names = ("encoder", "head", "prototypes", "patch_head", "patch_prototypes")
    before = {n: [t.clone() for t in getattr(objective, n).parameters()] for n in names}
    for name in names:
        shaken(getattr(objective, name), f"{name} in a step")
    objective.before_step(at(0))
    objective.after_step(at(0), {}, {})
    for name in names:
        for kept, old, new in zip(
            getattr(objective, f"teacher_{name}").parameters(),
            before[name],
            getattr(objective, name).parameters(),
            strict=True,
        ):
            assert not kept.requires_grad
            torch.testing.assert_close(kept, 0.992 * old + 0.008 * new, rtol=1e-5, atol=1e-7)
    images = two_views()["crops"][:, 0]
    assert torch.equal(objective.features(images), objective.teacher_encoder.features(images))


GRAM = CONFIG.override({"gram.teacher": "earlier"})


def gram(objective: DINOv2, batch: Batch, scale: int) -> Tensor:
    """``GramLoss.forward`` at the level of images, with all tokens."""
    losses = []
    for number, crop in enumerate(batch["crops"].unbind(1)):
        masks = crop_masks(batch["key"], number, (4, 4), 0.5, (0.1, 0.5))
        embedded = objective.encoder.embed(crop, masks, objective.mask_token)
        output_feats = objective.encoder.encode(embedded)[:, 3:]
        with torch.no_grad():
            large = functional.interpolate(crop, size=(16 * scale, 16 * scale), mode="bicubic")
            maps = objective.gram_encoder(large)[:, 3:].transpose(1, 2)
            maps = maps.reshape(len(crop), -1, 4 * scale, 4 * scale)
            maps = functional.interpolate(maps, size=(4, 4), mode="bicubic", antialias=False)
            target_feats = maps.flatten(2).transpose(1, 2)
        target_feats = functional.normalize(target_feats, dim=-1)
        output_feats = functional.normalize(output_feats, dim=-1)
        target_sim = torch.matmul(target_feats, target_feats.transpose(-1, -2))
        student_sim = torch.matmul(output_feats, output_feats.transpose(-1, -2))
        losses.append(torch.nn.MSELoss()(student_sim, target_sim))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("scale", [1, 2])
def test_gram_anchoring_is_the_references(scale: int) -> None:
    objective, batch = made(GRAM.override({"gram.scale": scale})), two_views()
    output, expected = objective(batch), gram(objective, batch, scale)
    term = output.terms["gram"]
    assert (term.targets, term.weight) == (6, 2.0)
    torch.testing.assert_close(term.total / 6, expected, rtol=1e-5, atol=1e-6)
    assert_same_gradients(
        reached(term.total / 6, objective.encoder), reached(expected, objective.encoder)
    )
    assert not any(p.requires_grad for p in objective.gram_encoder.parameters())


def reached(loss: Tensor, encoder: torch.nn.Module) -> dict[str, Tensor]:
    parameters = dict(encoder.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def test_the_teacher_of_gram_anchoring_is_the_runs_teacher(tmp_path: Path) -> None:
    earlier, path = made(), tmp_path / "earlier.safetensors"
    save_file(earlier.state_dict(), path)
    config = find_recipe("dinov2_cifar10")().override(
        {"objective": CONFIG.override({"gram.teacher": str(path)}), "model": MODEL}
    )
    for start in (None, str(path)):
        objective = made(config.objective)
        lines = fill_from_sources(config.override({"warm_start.path": start}), objective, SINGLE)
        assert "objective.gram.teacher" in lines[-1]
        for name, tensor in earlier.teacher_encoder.state_dict().items():
            assert torch.equal(objective.gram_encoder.state_dict()[name], tensor), name
    with refuses("objective.gram.teacher", "nowhere"):
        check_initial_weights(config.override({"objective.gram.teacher": "nowhere"}))
