"""DINO against the paper's pseudo-code, with torch's own layers."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from two_views import (
    RESNET,
    VIT,
    assert_same_gradients,
    at,
    gradients,
    multi_crop,
    scores,
    shaken,
    two_views,
)

from quadriga import randomness
from quadriga.errors import UserError
from quadriga.methods.dino import DINO, DINOConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

CONFIG = DINOConfig(prototypes=30, hidden_width=24, bottleneck_width=8)
MODELS = pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])


def made(model: ViTConfig | ResNetConfig, config: DINOConfig = CONFIG) -> DINO:
    objective = config.build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    objective.centre.normal_(0, 0.1, generator=randomness.generator(0, "centre"))
    return objective


def algorithm_1(
    objective: DINO, x1: Tensor, x2: Tensor, tps: float, tpt: float
) -> tuple[Tensor, Tensor]:
    """The loss, and the centre after the update."""

    def gs(x: Tensor) -> Tensor:
        return scores(objective.head, objective.prototypes, objective.encoder.features(x))

    def gt(x: Tensor) -> Tensor:
        rows = objective.teacher_encoder.features(x)
        return scores(objective.teacher_head, objective.teacher_prototypes, rows)

    def cross_entropy(t: Tensor, s: Tensor) -> Tensor:
        t = t.detach()
        s = torch.softmax(s / tps, dim=1)
        t = torch.softmax((t - centre) / tpt, dim=1)
        return -(t * torch.log(s)).sum(dim=1).mean()

    centre, m = objective.centre.clone(), 0.9
    s1, s2 = gs(x1), gs(x2)
    t1, t2 = gt(x1), gt(x2)
    loss = cross_entropy(t1, s2) / 2 + cross_entropy(t2, s1) / 2
    return loss, m * centre + (1 - m) * torch.cat([t1, t2]).mean(dim=0)


@MODELS
def test_loss_gradient_and_centre_are_those_of_algorithm_1(
    model: ViTConfig | ResNetConfig,
) -> None:
    objective, batch = made(model), two_views()
    objective.before_step(at(150, total_steps=1000))
    output = objective(batch)
    crops = batch["crops"].unbind(1)
    expected, centre = algorithm_1(objective, *crops, tps=0.1, tpt=0.04 + 0.03 * 15 / 30)
    torch.testing.assert_close(output.value, expected)
    assert_same_gradients(gradients(output.value, objective), gradients(expected, objective))
    assert {n: tuple(t.shape) for n, t in output.sums.items()} == objective.sum_shapes()
    objective.after_step(at(150, total_steps=1000), output.sums, {})
    torch.testing.assert_close(objective.centre, centre)


@MODELS
def test_with_local_crops_the_loss_is_the_mean_over_the_pairs(
    model: ViTConfig | ResNetConfig,
) -> None:
    """``DINOLoss.forward`` of the reference implementation."""
    objective, batch = made(model), multi_crop()
    crops = [*batch["crops"].unbind(1), *batch["local_crops"].unbind(1)]
    student = [
        scores(objective.head, objective.prototypes, objective.encoder.features(crop)) / 0.1
        for crop in crops
    ]
    teacher = [
        scores(
            objective.teacher_head,
            objective.teacher_prototypes,
            objective.teacher_encoder.features(crop),
        )
        for crop in crops[:2]
    ]
    expected, terms = torch.zeros(()), 0
    for iq, q in enumerate(teacher):
        targets = torch.softmax((q - objective.centre) / 0.07, dim=-1).detach()
        for v, own in enumerate(student):
            if v != iq:
                expected = (
                    expected
                    + torch.sum(-targets * functional.log_softmax(own, dim=-1), dim=-1).mean()
                )
                terms += 1
    assert terms == 8
    output = objective(batch)
    torch.testing.assert_close(output.value, expected / terms)
    found = gradients(output.value, objective)
    assert_same_gradients(found, gradients(expected / terms, objective))
    centre = (sum(t.sum(dim=0) for t in teacher) / 12).detach()
    torch.testing.assert_close(output.sums["teacher_scores"] / 12, centre, rtol=1e-4, atol=1e-5)


def test_micro_batches_add_up() -> None:
    objective, batch = made(VIT), two_views(7)
    whole = objective(batch)
    parts = [objective({n: t[i : i + 3] for n, t in batch.items()}) for i in range(0, 7, 3)]
    torch.testing.assert_close(sum(part.only.total for part in parts), whole.only.total)
    assert sum(part.only.targets for part in parts) == whole.only.targets == 7
    for name, total in whole.sums.items():
        torch.testing.assert_close(sum(part.sums[name] for part in parts), total)


def test_entropy_is_that_of_the_teacher() -> None:
    objective = made(VIT)
    total, count = objective(two_views()).metrics["teacher_entropy"]
    assert 0 < total / count < math.log(30)
    objective.teacher_temperature = 1e6
    objective.centre.zero_()
    total, count = objective(two_views()).metrics["teacher_entropy"]
    torch.testing.assert_close(total / count, torch.tensor(math.log(30)))


def test_the_teachers_temperature_rises_linearly() -> None:
    found = [CONFIG.teacher_temperature_at(at(step, 1000)) for step in (0, 100, 300, 900)]
    assert found == pytest.approx([0.04, 0.05, 0.07, 0.07])
    at_once = CONFIG.override({"temperature_warmup_epochs": 0})
    assert at_once.teacher_temperature_at(at(0)) == 0.07


def test_the_prototypes_leave_the_update_of_the_first_epoch() -> None:
    objective = made(VIT)
    frozen = []
    for step in (0, 9, 10, 50):
        objective.before_step(at(step))
        names = [n for n, _ in objective.named_parameters() if n.startswith(objective.frozen_parts)]
        frozen.append(names)
    assert frozen == [["prototypes.weight"], ["prototypes.weight"], [], []]


def test_the_length_of_prototypes_changes_nothing() -> None:
    objective, batch = made(VIT), two_views()
    before = objective(batch).value
    torch.testing.assert_close(objective.prototypes().norm(dim=1), torch.ones(30))
    with torch.no_grad():
        objective.prototypes.weight.mul_(torch.arange(1, 31)[:, None])
    torch.testing.assert_close(objective(batch).value, before)


def test_the_teacher_follows_and_has_no_gradient() -> None:
    objective, batch = made(VIT), two_views()
    objective.after_initial_weights()
    names = ("encoder", "head", "prototypes")
    start = {n: getattr(objective, n).state_dict() for n in names}
    start = {n: {k: t.clone() for k, t in state.items()} for n, state in start.items()}
    for name, state in start.items():
        for key, tensor in getattr(objective, f"teacher_{name}").state_dict().items():
            assert torch.equal(tensor, state[key])
    output = objective(batch)
    output.value.backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher")
    for name in names:
        shaken(getattr(objective, name), f"{name} in a step")
    objective.before_step(at(25))
    objective.after_step(at(25), output.sums, {})
    momentum = 1 - 0.004 * (math.cos(math.pi / 4) + 1) / 2
    for name, state in start.items():
        student = getattr(objective, name).state_dict()
        for key, tensor in getattr(objective, f"teacher_{name}").state_dict().items():
            wanted = momentum * state[key] + (1 - momentum) * student[key]
            torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-7)


def test_the_student_drops_paths_of_each_view_and_the_teacher_none() -> None:
    objective = made(VIT.override({"drop_path": 0.6}))
    objective.after_initial_weights()
    batch = two_views()
    same = batch["crops"][:, :1].expand(-1, 2, -1, -1, -1)
    drawn = objective({**batch, "crops": same})
    other = objective({**batch, "crops": same, "key": batch["key"] + 1})
    assert drawn.value != other.value
    for name, total in drawn.sums.items():
        assert torch.equal(total, other.sums[name])
    assert objective.eval()({**batch, "crops": same}).value != drawn.value


def test_features_are_the_teachers() -> None:
    objective, images = made(VIT).eval(), two_views()["crops"][:, 0]
    assert torch.equal(objective.features(images), objective.teacher_encoder.features(images))


def test_groups_are_for_residual_networks() -> None:
    grouped = CONFIG.override({"statistics_group": 4})
    with pytest.raises(UserError, match=r"objective\.statistics_group"):
        grouped.build(VIT)
    assert grouped.build(RESNET).statistics_group == 4
