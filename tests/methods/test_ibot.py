"""iBOT against the loss of the reference implementation, written out, and lightly's."""

import pytest
import torch
from lightly_reference import lightly_class
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
from quadriga.errors import UserError
from quadriga.methods.ibot import IBOT, IBOTConfig
from quadriga.methods.parts.masks import crop_masks

CONFIG = IBOTConfig(prototypes=30, hidden_width=24, bottleneck_width=8)
OWN_HEAD = CONFIG.override({"shared_head": False, "patch_temperature": 0.05})
MODEL = VIT.override({"registers": 2})


def made(config: IBOTConfig = CONFIG) -> IBOT:
    objective = config.build(MODEL)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    source = randomness.generator(0, "centres")
    with torch.no_grad():
        for tensor in (objective.mask_token, objective.centre, objective.patch_centre):
            tensor.normal_(0, 0.1, generator=source)
    return objective


class Outputs:
    """Scores of class tokens and all patches, of student and teacher, of each crop."""

    def __init__(self, objective: IBOT, batch: Batch) -> None:
        own = not objective.config.shared_head
        crops = batch["crops"].unbind(1)
        config = objective.config
        self.masks = [
            crop_masks(batch["key"], n, (4, 4), config.mask_probability, config.mask_ratio)
            for n in range(2)
        ]
        heads = ("patch_head", "patch_prototypes") if own else ("head", "prototypes")
        patch_head, patch_prototypes = (getattr(objective, name) for name in heads)
        teacher_patch = [getattr(objective, f"teacher_{name}") for name in heads]
        tokens = [
            objective.encoder.encode(objective.encoder.embed(crop, mask, objective.mask_token))
            for crop, mask in zip(crops, self.masks, strict=True)
        ]
        local = batch["local_crops"].unbind(1) if "local_crops" in batch else ()
        views = [t[:, 0] for t in tokens] + [objective.encoder(crop)[:, 0] for crop in local]
        self.student = [scores(objective.head, objective.prototypes, v) for v in views]
        self.student_patch = [scores(patch_head, patch_prototypes, t[:, 3:]) for t in tokens]
        with torch.no_grad():
            targets = [objective.teacher_encoder(crop) for crop in crops]
            self.teacher = [
                scores(objective.teacher_head, objective.teacher_prototypes, t[:, 0])
                for t in targets
            ]
            self.teacher_patch = [
                scores(teacher_patch[0], teacher_patch[1], t[:, 3:]) for t in targets
            ]


def reference(objective: IBOT, found: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``iBOTLoss.forward`` and ``update_center``: both losses and both centres."""
    temp, temp2 = objective.config.teacher_temperature, objective.config.patch_temperature
    student_cls_c = [s / 0.1 for s in found.student]
    student_patch_c = [s / 0.1 for s in found.student_patch]
    teacher_cls_c = [((t - objective.centre) / temp).softmax(dim=-1) for t in found.teacher]
    teacher_patch_c = [
        ((t - objective.patch_centre) / temp2).softmax(dim=-1) for t in found.teacher_patch
    ]
    total_loss1, n_loss_terms1 = torch.zeros(()), 0
    total_loss2, n_loss_terms2 = torch.zeros(()), 0
    for q in range(len(teacher_cls_c)):
        for v in range(len(student_cls_c)):
            if v == q:
                loss2 = torch.sum(
                    -teacher_patch_c[q] * functional.log_softmax(student_patch_c[v], dim=-1), dim=-1
                )
                mask = found.masks[v]
                loss2 = torch.sum(loss2 * mask.float(), dim=-1) / mask.sum(dim=-1).clamp(min=1.0)
                total_loss2 = total_loss2 + loss2.mean()
                n_loss_terms2 += 1
            else:
                loss1 = torch.sum(
                    -teacher_cls_c[q] * functional.log_softmax(student_cls_c[v], dim=-1), dim=-1
                )
                total_loss1 = total_loss1 + loss1.mean()
                n_loss_terms1 += 1
    centre = objective.centre * 0.9 + torch.cat(found.teacher).mean(dim=0) * 0.1
    patches = torch.cat(found.teacher_patch).mean(dim=1).mean(dim=0)
    centre2 = objective.patch_centre * 0.9 + patches * 0.1
    return total_loss1 / n_loss_terms1, total_loss2 / n_loss_terms2, centre, centre2


@pytest.mark.parametrize("config", [CONFIG, OWN_HEAD], ids=["shared", "own head"])
@pytest.mark.parametrize("local", [0, 3])
def test_losses_gradients_and_centres_are_the_references(config: IBOTConfig, local: int) -> None:
    objective = made(config)
    batch = multi_crop(local=local) if local else two_views()
    output, found = objective(batch), Outputs(objective, batch)
    masked = torch.stack(found.masks).sum(dim=2)
    assert (masked == 0).any()
    assert len(masked.unique()) > 2
    of_class, of_patches, centre, patch_centre = reference(objective, found)
    for name, expected in (("class", of_class), ("patches", of_patches)):
        term = output.terms[name]
        torch.testing.assert_close(term.total / term.targets, expected)
    expected = of_class + of_patches
    torch.testing.assert_close(output.value, expected)
    assert_same_gradients(gradients(output.value, objective), gradients(expected, objective))
    assert {n: tuple(t.shape) for n, t in output.sums.items()} == objective.sum_shapes()
    objective.after_step(at(400), output.sums, {})
    torch.testing.assert_close(objective.centre, centre, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(objective.patch_centre, patch_centre, rtol=1e-4, atol=1e-6)


def test_the_losses_are_lightlys() -> None:
    """Its patch loss, like DINOv2's, sees masked patches alone, and divides by all images."""
    objective, batch = made(), multi_crop()
    output, found = objective(batch), Outputs(objective, batch)
    of_class = lightly_class("lightly.loss:DINOLoss")(30, teacher_temp=0.07)
    of_class.center.copy_(objective.centre)
    torch.testing.assert_close(
        output.terms["class"].total / 6, of_class(found.teacher, found.student)
    )
    of_patches = lightly_class("lightly.loss:IBOTPatchLoss")(30, teacher_temp=0.07)
    of_patches.center.center.copy_(objective.patch_centre)
    mask = torch.cat(found.masks)
    theirs = of_patches(
        torch.cat(found.teacher_patch)[mask],
        torch.cat(found.student_patch)[mask],
        mask.view(-1, 4, 4),
    )
    torch.testing.assert_close(output.terms["patches"].total / 6, theirs)


def test_micro_batches_add_up() -> None:
    objective, batch = made(OWN_HEAD), multi_crop(7)
    whole = objective(batch)
    parts = [objective({n: t[i : i + 3] for n, t in batch.items()}) for i in range(0, 7, 3)]
    for name, term in whole.terms.items():
        torch.testing.assert_close(sum(part.terms[name].total for part in parts), term.total)
        assert sum(part.terms[name].targets for part in parts) == term.targets == 7
    for name, total in whole.sums.items():
        torch.testing.assert_close(sum(part.sums[name] for part in parts), total)


@pytest.mark.parametrize(("probability", "ratio"), [(0.0, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_mask_ratios_at_their_ends(probability: float, ratio: float) -> None:
    objective = made(
        CONFIG.override({"mask_probability": probability, "mask_ratio": (ratio, ratio)})
    )
    output = objective(two_views(1))
    of_patches = output.terms["patches"].total
    assert (of_patches > 0) == (probability * ratio > 0)
    total, count = output.metrics["masked"]
    assert (total / count > 0.8) == (probability * ratio > 0)
    output.value.backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)


def test_entropies_are_the_teachers() -> None:
    objective, batch = made(), two_views()
    metrics, found = objective(batch).metrics, Outputs(objective, batch)
    masks = torch.cat(found.masks)
    q = ((torch.cat(found.teacher_patch) - objective.patch_centre) / 0.07).softmax(dim=-1)
    entropies = (torch.special.entr(q).sum(dim=-1) * masks).sum(dim=1)
    masked = masks.any(dim=1)
    total, count = metrics["patch_entropy"]
    torch.testing.assert_close(total / count, (entropies / masks.sum(dim=1))[masked].mean())
    q = ((torch.cat(found.teacher) - objective.centre) / 0.07).softmax(dim=-1)
    total, count = metrics["teacher_entropy"]
    torch.testing.assert_close(total / count, torch.special.entr(q).sum(dim=-1).mean())


def test_temperatures_rise_and_prototypes_are_frozen_at_first() -> None:
    objective = made(OWN_HEAD)
    found = []
    for step in (0, 9, 150, 900):
        objective.before_step(at(step, 1000))
        names = [n for n, _ in objective.named_parameters() if n.startswith(objective.frozen_parts)]
        found.append((objective.teacher_temperature, objective.patch_temperature, len(names)))
    expected = [(0.04, 0.04, 2), (0.0409, 0.0403, 2), (0.055, 0.045, 0), (0.07, 0.05, 0)]
    assert found == [pytest.approx(row) for row in expected]


def test_the_teacher_follows_all_parts_and_has_no_gradient() -> None:
    objective = made(OWN_HEAD)
    objective.after_initial_weights()
    names = ("encoder", "head", "prototypes", "patch_head", "patch_prototypes")
    before = {n: [t.clone() for t in getattr(objective, n).parameters()] for n in names}
    output = objective(two_views())
    output.value.backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher")
    for name in names:
        shaken(getattr(objective, name), f"{name} in a step")
    objective.before_step(at(0))
    objective.after_step(at(0), output.sums, {})
    for name in names:
        teacher = getattr(objective, f"teacher_{name}").parameters()
        for kept, old, new in zip(
            teacher, before[name], getattr(objective, name).parameters(), strict=True
        ):
            torch.testing.assert_close(kept, 0.996 * old + 0.004 * new, rtol=1e-5, atol=1e-7)


def test_features_are_the_teachers() -> None:
    objective, images = made().eval(), two_views()["crops"][:, 0]
    assert torch.equal(objective.features(images), objective.teacher_encoder.features(images))


def test_what_cannot_be_is_refused() -> None:
    with refuses("mask_ratio", "0.5", "0.1"):
        CONFIG.override({"mask_ratio": (0.5, 0.1)})
    with pytest.raises(UserError, match=r"model\.class_token"):
        CONFIG.build(VIT.override({"pool": "mean", "class_token": False}))
